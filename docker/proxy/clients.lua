-- Who asks: API keys, compared by their SHA-256 and so exactly, out of a file that is read again while it changes.
local ffi = require("ffi")
local shares = require("shares")

ffi.cdef("unsigned char *SHA256(const unsigned char *d, size_t n, unsigned char *md);")

local clients = {}

-- An address that has failed so often within a minute may try no key that it has not used before.
local MOST_FAILURES = 10
local FAILURES_S = 60
-- For so long a key that was right counts as used by its address.
local USED_S = 3600
local LONGEST_KEY = 512
-- How often the file is read [s].
local EVERY_S = 1

local file = os.getenv("KEYS_FILE")
-- Digest of a key -> its client's name. The lookup's time tells of a digest's bytes at most, never of a key's.
local names = {}
local text

local function sha256(key)
    local out = ffi.new("unsigned char[32]")
    ffi.C.SHA256(key, #key, out)
    return ffi.string(out, 32)
end

local function from_hex(digits)
    return (digits:gsub("%x%x", function(pair)
        return string.char(tonumber(pair, 16))
    end))
end

-- Reads lines of a key, a space and a name; `sha256:` and 64 digits stand for a key that the file does not hold.
local function parse(lines)
    local found, number = {}, 0
    for line in lines:gmatch("([^\n]*)\n?") do
        number = number + 1
        if not line:match("^%s*#") and line:match("%S") then
            local key, name = line:match("^%s*(%S+)%s+(%S+)%s*$")
            if not key then
                return nil, "line " .. number .. " is not a key, a space and a name"
            end
            local hex = key:match("^sha256:(%x+)$")
            local digest = hex and #hex == 64 and from_hex(hex) or sha256(key)
            if found[digest] then
                return nil, "line " .. number .. " has a key that is there already"
            end
            found[digest] = name
        end
    end
    return found
end

local function read()
    local opened, problem = io.open(file)
    if not opened then
        return nil, problem
    end
    local lines = opened:read("*a")
    opened:close()
    return lines
end

-- Reads the file when nginx starts; nginx does not start with a wrong one.
function clients.load()
    text = assert(read())
    names = assert(parse(text))
end

-- Reads it again from time to time; a wrong one changes nothing, and is said once.
function clients.watch()
    local said
    assert(ngx.timer.every(EVERY_S, function()
        local lines, problem = read()
        if lines == text then
            return
        end
        local found
        if lines then
            found, problem = parse(lines)
        end
        if found then
            text, names, said = lines, found, nil
            ngx.log(ngx.WARN, "API keys were read again from ", file)
        elseif said ~= problem then
            said = problem
            ngx.log(ngx.ERR, "API keys stay as they were: ", file, ": ", problem)
        end
    end))
end

local function presented()
    local headers = ngx.req.get_headers(100)
    local key, bearer = headers["x-api-key"], headers["authorization"]
    if key == nil and type(bearer) == "string" then
        key = bearer:match("^[Bb]earer (.+)$")
    end
    return type(key) == "string" and #key <= LONGEST_KEY and key or nil
end

-- Returns the client's name, or nil and the status of the refusal.
local function by_key()
    local key = presented()
    local counts, attempts = ngx.shared.counts, ngx.shared.attempts
    if not key then
        counts:incr("unauthorized", 1, 0)
        return nil, 401
    end
    local digest, address = sha256(key), ngx.var.binary_remote_addr
    local used = address .. digest
    if (attempts:get(address) or 0) >= MOST_FAILURES and not attempts:get(used) then
        counts:incr("throttled", 1, 0)
        shares.hold()
        return nil, 429
    end
    local name = names[digest]
    if not name then
        attempts:incr(address, 1, 0, FAILURES_S)
        counts:incr("unauthorized", 1, 0)
        return nil, 401
    end
    if not attempts:get(used) then
        attempts:set(used, true, USED_S)
    end
    return name
end

-- Sets $client, which limits and the log name, and X-Client, by which replicas share what there is; or refuses.
function clients.identify()
    local auth = ngx.var.auth
    if auth == "none" then
        ngx.var.client = "anonymous"
    elseif auth == "mtls" then
        ngx.var.client = ngx.var.ssl_client_s_dn
    else
        local name, status = by_key()
        if not name then
            return ngx.exit(status)
        end
        ngx.var.client = name
    end
    -- A header, because nginx runs `set` again in the request to a replica.
    ngx.req.set_header("X-Client", auth == "none" and ngx.var.remote_addr or ngx.var.client)
    if ngx.req.get_method() ~= "POST" then
        return ngx.exit(405)
    end
    shares.check()
end

return clients
