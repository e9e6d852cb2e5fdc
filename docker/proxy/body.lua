-- The bodies of requests, each whole and in time before a replica sees it.
local shares = require("shares")

local body = {}

-- Longest time for a whole body [s]; where many are under way, slow ones make room for fast ones. nginx itself limits
-- only the pauses between a body's pieces.
local BODY_S, CROWDED_S = 10, 2
local CROWD = 64
-- Pause before each further piece of a body that is refused already [s].
local PAUSE_S = 0.1
-- Bodies under way in this worker.
local reading = 0

local function read_pieces(socket, left)
    ngx.update_time()
    local began, paused, refused = ngx.now(), 0, shares.unwanted()
    ngx.req.init_body()
    while left > 0 do
        -- In short waits, so that a crowd that gathers meanwhile is seen.
        socket:settimeout(500)
        local data, problem = socket:receiveany(math.min(left, 65536))
        ngx.update_time()
        if data then
            -- The rest is read as well, so that its client reads the refusal.
            refused = refused or shares.taken(#data)
            if refused then
                ngx.sleep(PAUSE_S)
            else
                ngx.req.append_body(data)
            end
            left, paused = left - #data, 0
        elseif problem == "timeout" then
            paused = paused + 0.5
        else
            return 400
        end
        if left > 0 and (ngx.now() - began > (reading > CROWD and CROWDED_S or BODY_S) or paused >= 5) then
            return refused and 429 or 408
        end
    end
    if refused then
        return 429
    end
    ngx.req.finish_body()
end

-- Reads the request's body. Returns nothing, or the status of the refusal.
function body.read()
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
    reading = reading + 1
    local done, refused = pcall(read_pieces, socket, left)
    reading = reading - 1
    if done and refused == 429 then
        shares.refuse()
    end
    return not done and 400 or refused
end

return body
