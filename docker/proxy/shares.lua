-- What one client may ask for within a second, beside the number of its requests, which nginx limits itself.
local shares = {}

-- Of bodies, as they are read, since all that follows has to carry them: so much in so long a time [bytes, s]. A
-- quarter of a second keeps large ones apart, and the largest, of 4 MiB, has room in one.
local PERIOD_S = 0.25
local BYTES = math.max(5e6, PERIOD_S * tonumber(os.getenv("BYTES_PER_S")))
-- Whoever got so many answers with 429 within a second, and goes on, gets the next ones late [s].
local MOST_REFUSED, HELD_S = 100, 1
-- As so many of them counts a body that was read.
local LARGE = 20
-- Bad requests that are answered at once, within a second; whoever sends more gets the answers late. A large one
-- counts more: another one for so many bytes.
local MOST_BAD, BAD_BYTES = 20, 1e5
local dict = ngx.shared.shares

-- Those of one key and address: a program that runs wild is no matter of the others that have its key.
local function refusals()
    return "refused " .. (ngx.var.client or "") .. ngx.var.binary_remote_addr
end

-- Waits before a refusal, of one that asks again and again without heed of Retry-After.
function shares.hold()
    ngx.ctx.held = true
    ngx.sleep(HELD_S)
end

-- Waits before the answer to a bad request, of one that sends many. Its good ones are not concerned.
function shares.blame()
    local weight = 1 + math.floor((tonumber(ngx.var.http_content_length) or 0) / BAD_BYTES)
    local bad = "bad " .. (ngx.var.client or "") .. ngx.var.binary_remote_addr
    local late = (dict:get(bad) or 0) >= MOST_BAD
    dict:incr(bad, weight, 0, 1)
    if late then
        ngx.sleep(HELD_S)
    end
end

-- Refuses whoever does not heed its refusals, before nginx counts its requests.
function shares.check()
    if (dict:get(refusals()) or 0) > MOST_REFUSED then
        shares.hold()
        return ngx.exit(429)
    end
end

-- Counts a piece of a body; whether the client has had its share for now.
function shares.taken(bytes)
    return dict:incr("bytes " .. ngx.var.limited, bytes, 0, PERIOD_S) > BYTES
end

-- Counts a body that was read in vain, which is dearer than other refusals.
function shares.refuse()
    dict:incr(refusals(), LARGE, 0, 1)
end

-- Counts an answer.
function shares.count()
    if ngx.status == 429 then
        dict:incr(refusals(), 1, 0, 1)
    end
end

return shares
