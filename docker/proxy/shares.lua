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
-- Bad requests that are answered at once, within so long [s]; whoever sends more gets the answers late, each at a
-- moment of its own, so that those who wait do not come back together. A large one counts more: another one for so
-- many bytes.
local MOST_BAD, BAD_S, BAD_BYTES = 20, 3, 1e5
-- Bytes of bad bodies within so long [s] after which those of more than so many are refused.
local MOST_BAD_BYTES, LARGE_BAD_S, LARGE_BYTES = 24e6, 10, 256e3
local dict = ngx.shared.shares

-- A counter of one key and address: a program that runs wild is no matter of the others that have its key.
local function own(name)
    return name .. (ngx.var.client or "") .. ngx.var.binary_remote_addr
end

local function length()
    return tonumber(ngx.var.http_content_length) or 0
end

-- Waits before a refusal, of one that asks again and again without heed of Retry-After.
function shares.hold()
    ngx.ctx.held = true
    ngx.sleep(HELD_S)
end

-- Waits before the answer to a bad request, of one that sends many. Its good ones are not concerned.
function shares.blame()
    local late = (dict:get(own("bad ")) or 0) >= MOST_BAD
    dict:incr(own("bad "), 1 + math.floor(length() / BAD_BYTES), 0, BAD_S)
    if length() > LARGE_BYTES then
        dict:incr(own("bad bytes "), length(), 0, LARGE_BAD_S)
    end
    if late then
        ngx.sleep(HELD_S * (1 + math.random()))
    end
end

-- Refuses whoever does not heed its refusals, before nginx counts its requests.
function shares.check()
    if (dict:get(own("refused ")) or 0) > MOST_REFUSED then
        shares.hold()
        return ngx.exit(429)
    end
end

-- Whether this body is large, and so many bytes of its client's last ones were bad that it is not wanted.
function shares.unwanted()
    return length() > LARGE_BYTES and (dict:get(own("bad bytes ")) or 0) > MOST_BAD_BYTES
end

-- Counts a piece of a body; whether the client has had its share for now.
function shares.taken(bytes)
    return dict:incr("bytes " .. ngx.var.limited, bytes, 0, PERIOD_S) > BYTES
end

-- Counts a body that was read in vain, which is dearer than other refusals.
function shares.refuse()
    dict:incr(own("refused "), LARGE, 0, 1)
end

-- Counts an answer.
function shares.count()
    if ngx.status == 429 then
        dict:incr(own("refused "), 1, 0, 1)
    end
end

return shares
