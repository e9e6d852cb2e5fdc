-- What nginx refused by itself.
require("errors").refuse(ngx.status == 502 and 503 or ngx.status)
if ngx.ctx.held then
    ngx.flush(true)
    ngx.exit(ngx.ERROR) -- the body is not read
end
