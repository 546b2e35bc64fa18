"""Sharing claims among lanes."""

import random
from itertools import pairwise

from flowfabric.engine import turns
from flowfabric.engine.turns import Turns

WORKER = ("tenant", ("a", "b"), ())


def test_the_first_claim_goes_to_the_most_urgent():
    assert Turns().choose(WORKER, {"a": (2, "x"), "b": (1, "y")}) == "b"


def test_the_most_urgent_is_never_further_away_than_the_second_claim():
    shared = Turns()
    heads = {str(number): (number, "x") for number in range(9)}
    chosen = [shared.choose(WORKER, heads) for _ in range(20)]
    assert all("0" in pair for pair in pairwise(chosen))


def test_each_of_n_lanes_gets_one_of_any_2n_claims():
    lanes = 7
    for seed in range(20):
        chance, shared = random.Random(seed), Turns()
        chosen = [
            shared.choose(WORKER, {lane: (chance.randrange(5), "x") for lane in range(lanes)})
            for _ in range(200)
        ]
        for place in range(len(chosen) - 2 * lanes + 1):
            assert set(chosen[place : place + 2 * lanes]) == set(range(lanes))


def test_workers_that_serve_different_lanes_do_not_take_each_others_turns():
    shared = Turns()
    other = ("tenant", ("a", "c"), ())
    chosen = []
    for _ in range(10):
        chosen.append(shared.choose(WORKER, {"a": (0, "x"), "b": (9, "y")}))
        shared.choose(other, {"a": (0, "x"), "c": (9, "y")})
    assert chosen.count("b") >= 4


def test_a_new_lane_does_not_go_before_those_that_already_wait():
    shared = Turns()
    for _ in range(2):
        shared.choose(WORKER, {"a": (0, "x"), "b": (1, "y"), "c": (2, "z")})
    waiting = {"b": (1, "y"), "c": (2, "z")}
    chosen = []
    for number in range(8):
        heads = {f"new-{number}": (0, "n"), **waiting}
        chosen.append(shared.choose(WORKER, heads))
    assert {"b", "c"} <= set(chosen)


def test_one_lane_alone_uses_up_no_turn():
    shared = Turns()
    for _ in range(3):
        assert shared.choose(WORKER, {"a": (5, "x")}) == "a"
    assert shared.choose(WORKER, {"a": (5, "x"), "b": (1, "y")}) == "b"


def test_what_is_remembered_is_bounded(monkeypatch):
    monkeypatch.setattr(turns, "REMEMBERED_MAX", 3)
    shared = Turns()
    for number in range(50):
        shared.choose((str(number),), {f"a-{number}": (0, "x"), f"b-{number}": (1, "y")})
        shared.choose((str(number),), {f"a-{number}": (0, "x"), f"b-{number}": (1, "y")})
        shared.keep_place((str(number),), "place")
        shared.keep_passed({str(number): (1, "x")})
    notes = (shared._by_turn, shared._served, shared._places, shared._passed)
    assert [len(note) for note in notes] == [3, 3, 3, 3]
