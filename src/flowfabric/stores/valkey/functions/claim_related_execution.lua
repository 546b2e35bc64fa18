-- Give executions to a worker with which other records have to be looked at: see core/rules/claiming.py.
--
-- These are the flow of a member, which may have been cancelled, and the attempt before the one that is opened,
-- which becomes a record of its own. Their keys cannot be known before claim_execution has asked for them.
-- Replies as claim_execution, and with the record of a member's edges, unless it is long.
-- Declines as claim_execution, and if what is related is not what the caller was asked for, or
-- the flow was cancelled.

register_native('claim_related_execution', claim, {'allow-oom'})
