local shares = require("shares")

-- The proxy's own refusals, as the JSON that the policy's errors have: {"error": {"code", "field", "message"}}.
local errors = {}

local REASONS = {
    [400] = { "bad_request", "not an HTTP request that this server reads" },
    [401] = { "unauthorized", "send your API key as `X-API-Key: ...` or `Authorization: Bearer ...`" },
    [403] = { "forbidden", "not allowed" },
    [404] = { "not_found", "no such path, model or version; send POST /predictions/<model>" },
    [405] = { "method_not_allowed", "send POST" },
    [408] = { "slow_request", "the body did not arrive in time" },
    [411] = { "length_required", "send a Content-Length; chunked bodies are not taken" },
    [413] = { "too_large", "a request has at most 4 MiB" },
    [414] = { "bad_request", "the path is too long" },
    [429] = { "overloaded", "too many requests; wait as long as Retry-After says" },
    [494] = { "bad_request", "the headers are too long" },
    [495] = { "bad_certificate", "the client certificate is not valid" },
    [496] = { "no_certificate", "send a client certificate" },
    [497] = { "tls_required", "this port speaks TLS" },
    [500] = { "server_error", "the server failed on this request" },
    [503] = { "unavailable", "no replica is ready; try again" },
    [504] = { "timeout", "the server did not answer in time" },
}
local RETRY_AFTER_S = { [429] = 1, [503] = 1 }

-- Answers with a status; the reason is a row of the table above, by default the status's own.
function errors.refuse(status, reason)
    local code, message = unpack(REASONS[reason or status] or REASONS[500])
    if status >= 400 and status < 500 and status ~= 429 then
        shares.blame()
    end
    ngx.status = status
    ngx.header.content_type = "application/json"
    ngx.header["Retry-After"] = RETRY_AFTER_S[status]
    local body = '{"error": {"code": "%s", "field": null, "message": "%s"}, "request_id": "%s"}\n'
    body = body:format(code, message, ngx.var.id)
    ngx.header.content_length = #body
    ngx.print(body)
end

return errors
