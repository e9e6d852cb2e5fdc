-- What the proxy counts, as Prometheus text. Counters exist from the start.
local metrics = {}

local NAMES = {
    { "vla_proxy_requests_total", "Requests by the class of their status.", "status", { "2xx", "4xx", "5xx" } },
    { "vla_proxy_refused_keys_total", "Requests without a right API key.", "reason", { "unauthorized", "throttled" } },
}

-- Counts one request that is answered.
function metrics.count()
    ngx.shared.counts:incr(math.floor(ngx.status / 100) .. "xx", 1, 0)
end

function metrics.write()
    local lines = {}
    for _, metric in ipairs(NAMES) do
        local name, help, label, values = unpack(metric)
        lines[#lines + 1] = ("# HELP %s %s\n# TYPE %s counter"):format(name, help, name)
        for _, value in ipairs(values) do
            local count = ngx.shared.counts:get(value) or 0
            lines[#lines + 1] = ('%s{%s="%s"} %d'):format(name, label, value, count)
        end
    end
    ngx.header.content_type = "text/plain; version=0.0.4; charset=utf-8"
    ngx.print(table.concat(lines, "\n"), "\n")
end

return metrics
