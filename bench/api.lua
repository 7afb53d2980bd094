-- For wrk: sends the requests of a file (made and signed by api.py) in turn, each whole and ready, and prints what api.py reads.
local requests, at = {}, 0

function init(args)
   local file = assert(io.open(args[1], "rb"))
   for request in (file:read("*a")):gmatch("(.-\r\n\r\n)") do requests[#requests + 1] = request end
   file:close()
end

function request()
   at = at % #requests + 1
   return requests[at]
end

function done(summary, latency)
   local e = summary.errors
   io.write(string.format("result %d %d %d %d\n", summary.requests, summary.duration, latency:percentile(99),
      e.connect + e.read + e.write + e.status + e.timeout))
end
