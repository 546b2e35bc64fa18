// Shows what is asked, and sends the answer. All that is secret came behind the "#" and leaves only
// in the bodies of requests; text goes into the page as text and never as markup.
"use strict";

const element = (id) => document.getElementById(id);
const say = (text) => { element("status").textContent = text; };

function readLink() {
  const text = location.hash.slice(1).replace(/-/g, "+").replace(/_/g, "/");
  history.replaceState(null, "", location.pathname);
  const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  const link = JSON.parse(new TextDecoder().decode(bytes));
  if (!link.e || !link.w || !link.t) throw new Error("incomplete");
  return link;
}

async function post(path, link, more) {
  const body = { execution_id: link.e, waitpoint_id: link.w, token: link.t, ...more };
  const answer = await fetch(path, {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(body),
    credentials: "omit",
    cache: "no-store",
    referrerPolicy: "no-referrer",
  });
  return { status: answer.status, body: await answer.json() };
}

async function send(link, payload) {
  const who = element("who").value.trim();
  if (!who) {
    element("who").focus();
    say("Please say who you are.");
    return;
  }
  for (const button of document.querySelectorAll("button")) button.disabled = true;
  const { status, body } = await post("answer", link, { name: link.n, payload, who });
  element("form").hidden = true;
  if (status === 200 && !body.duplicate) say("Thank you. Your answer has arrived.");
  else if (status === 200 || status === 409) say("This was answered before; nothing was changed.");
  else say("This link is not valid any more.");
}

function addButton(link, label, payloadOf) {
  const button = document.createElement("button");
  button.type = "button";
  button.textContent = label;
  button.addEventListener("click", () => {
    send(link, payloadOf()).catch(() => say("Nothing was sent. Is there a connection? Please open the link again."));
  });
  element("choices").append(button);
}

function offer(link) {
  const choices = Object.entries(link.c || {});
  element("text").hidden = element("text-label").hidden = choices.length > 0;
  for (const [label, payload] of choices) addButton(link, label, () => payload);
  if (!choices.length) addButton(link, "Send", () => element("text").value);
  element("form").addEventListener("submit", (event) => event.preventDefault());
  element("form").hidden = false;
  say("");
}

async function begin() {
  const link = readLink();
  if (link.q) element("question").textContent = link.q;
  const { status, body } = await post("question", link, {});
  if (status !== 200) {
    say("This link is not valid any more.");
    return;
  }
  if (!link.n) link.n = body.required_signal_names[0] || "answer";
  offer(link);
}

begin().catch(() => say("This link is not complete. Please open it again as you got it."));
