-- Give executions to a worker whose attempt is their first, or goes on: see core/rules/claiming.py.
--
-- Reply of a command the execution as it is written, and the record of its input.
-- Asks for what is related to the execution, and so declines, if it is a member of a flow or if another attempt
-- is to follow one: see claim_related_execution.lua.
-- Declines what is not plain, waits for something, resumes after a suspension, needs a capability that the
-- worker lacks, has a policy that the worker's would have to be merged into, or was asked for before; and
-- everything if the lane is not as the caller remembers it.

-- Also when the server's memory is full, as all work that has begun.
register_native('claim_execution', claim, {'allow-oom'})
