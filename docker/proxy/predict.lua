-- One request to /predictions or /explanations: its body in time, a replica's answer, errors as JSON.
local errors = require("errors")

-- Longest time for a whole body [s]. nginx itself limits only the pauses between its pieces.
local BODY_S = 10
-- nginx itself waits 20 s for an answer, and 1 s for a connection: an earlier timeout was no taken request.
local TAKEN_S = 10
-- How often a request is asked when replicas die under it.
local ATTEMPTS = 3

-- Reads the body. Returns nothing, or the status of the refusal.
local function read_body()
    local left = tonumber(ngx.var.http_content_length)
    if not left then
        return 411
    elseif left == 0 then
        return nil
    end
    local socket = ngx.req.socket()
    if not socket then
        return 400
    end
    local deadline = ngx.now() + BODY_S
    ngx.req.init_body()
    while left > 0 do
        ngx.update_time()
        local remaining_ms = (deadline - ngx.now()) * 1000
        if remaining_ms <= 0 then
            return 408
        end
        socket:settimeout(math.min(remaining_ms, 5000))
        local data, problem = socket:receiveany(math.min(left, 65536))
        if not data then
            return problem == "timeout" and 408 or 400
        end
        ngx.req.append_body(data)
        left = left - #data
    end
    ngx.req.finish_body()
end

-- Whether the policy itself wrote this error; its JSON says more than the proxy could.
local function policys_own(answer)
    local kind = answer.header["Content-Type"] or ""
    return kind:find("msgpack", 1, true) ~= nil or answer.body:find('^{"error"') ~= nil
end

-- Whether no replica can be reached, the gate of a replica has no server, or the answer broke off.
local function nobody(answer)
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
    if died(answer) then
        return errors.refuse(nobody(answer) and 503 or 500)
    end
    if status >= 400 and not policys_own(answer) then
        -- So TorchServe says that the model's queue is full.
        local full = status == 503 and answer.body:find("has no worker to serve", 1, true)
        return errors.refuse(full and 429 or status)
    end
    ngx.status = status
    ngx.header.content_type = answer.header["Content-Type"]
    ngx.var.torchserve_id = answer.header["x-request-id"] or ""
    ngx.header.content_length = #answer.body
    ngx.print(answer.body)
end

local refused = read_body()
if refused then
    errors.refuse(refused)
    ngx.flush(true)
    return ngx.exit(ngx.ERROR) -- the rest of the body is not waited for
end
reply(ask())
