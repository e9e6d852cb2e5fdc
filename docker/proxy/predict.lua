-- One request to /predictions or /explanations: its body in time, a replica's answer, errors as JSON.
local body = require("body")
local errors = require("errors")
local shares = require("shares")

-- nginx itself waits 20 s for an answer, and 0.2 s for a connection: an earlier timeout was no taken request.
local TAKEN_S = 10
-- How often a request is asked when replicas die under it.
local ATTEMPTS = 3

-- Whether the policy itself wrote this error; its JSON says more than the proxy could.
local function policys_own(answer)
    local kind = answer.header["Content-Type"] or ""
    return kind:find("msgpack", 1, true) ~= nil or answer.body:find('^{"error"') ~= nil
end

-- Whether no replica can be reached, the gate of a replica has no server, or the answer broke off.
local function nobody(answer)
    if answer.status == 429 then
        return false -- nginx's own refusal, over `limit_conn`, reads as one that broke off
    end
    if answer.status == 504 then
        return answer.seconds < TAKEN_S and not policys_own(answer)
    end
    return answer.status == 502 or answer.truncated
end

-- Whether the replica died while it had the request: nobody answered, or its worker's death was reported.
local function died(answer)
    if nobody(answer) then
        return true
    end
    return (answer.status == 500 or answer.status == 507) and answer.body:find("Worker died", 1, true) ~= nil
end

local function ask()
    local answer
    for attempt = 1, ATTEMPTS do
        ngx.var.attempts = attempt
        ngx.update_time()
        local started = ngx.now()
        answer = ngx.location.capture("/replica" .. ngx.var.uri, {
            method = ngx.HTTP_POST, always_forward_body = true, copy_all_vars = true,
        })
        ngx.update_time()
        answer.seconds = ngx.now() - started
        if not died(answer) then
            return answer
        end
        ngx.sleep(0.05 * attempt)
    end
    return answer
end

local function reply(answer)
    local status = answer.status
    if status == 429 then
        return errors.refuse(429)
    end
    if died(answer) then
        return errors.refuse(nobody(answer) and 503 or 500)
    end
    if status >= 400 and not policys_own(answer) then
        return errors.refuse(status)
    end
    if status >= 400 and status < 500 then
        shares.blame()
    end
    ngx.status = status
    ngx.header.content_type = answer.header["Content-Type"]
    ngx.var.torchserve_id = answer.header["x-request-id"] or ""
    ngx.header.content_length = #answer.body
    ngx.print(answer.body)
end

local _ = ngx.var.id -- before any request to a replica, which would else get an id of its own
local refused = body.read()
if refused then
    errors.refuse(refused)
    ngx.flush(true)
    return ngx.exit(ngx.ERROR) -- the rest of the body is not waited for
end
-- Who hangs up takes the request along, up to the gate's queue.
ngx.on_abort(function()
    ngx.exit(499)
end)
reply(ask())
