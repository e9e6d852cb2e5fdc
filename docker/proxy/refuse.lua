-- What nginx refused by itself.
require("errors").refuse(ngx.status == 502 and 503 or ngx.status)
