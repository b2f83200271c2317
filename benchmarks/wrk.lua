-- Arguments: what varies (nothing, features, request-id), seed, method, target, body, then headers as "Name: value".
-- A body that begins with "hex:" stands for its bytes, one with "file:" for those of that file.
-- In target and body, $1 to $4 stand for the four features; with "nothing" they have been filled in already.

local LOW = {4.3, 2.0, 1.0, 0.1}
local HIGH = {7.9, 4.4, 6.9, 2.5}

local function features()
  local row = {}
  for i = 1, 4 do
    row[tostring(i)] = string.format("%.15g", LOW[i] + math.random() * (HIGH[i] - LOW[i]))
  end
  return row
end

local function compose(method, target, head, body)
  if method == "GET" then
    return "GET " .. target .. head .. "\r\n"
  end
  return method .. " " .. target .. head .. "Content-Length: " .. #body .. "\r\n\r\n" .. body
end

function init(args)
  local vary, seed, method, target, body = args[1], tonumber(args[2]), args[3], args[4], args[5]
  if body:sub(1, 4) == "hex:" then
    body = body:sub(5):gsub("%x%x", function(byte) return string.char(tonumber(byte, 16)) end)
  elseif body:sub(1, 5) == "file:" then
    body = assert(io.open(body:sub(6), "rb")):read("*a")
  end
  local head = " HTTP/1.1\r\nHost: localhost\r\n"
  for i = 6, #args do
    head = head .. args[i] .. "\r\n"
  end
  math.randomseed(seed)
  if vary == "features" then
    request = function()
      local row = features()
      return compose(method, target:gsub("%$(%d)", row), head, (body:gsub("%$(%d)", row)))
    end
  elseif vary == "request-id" then
    request = function()
      local id = string.format("%08x%08x", math.random(0, 0x7fffffff), math.random(0, 0x7fffffff))
      return compose(method, target, head .. "X-Request-ID: " .. id .. "\r\n", body)
    end
  else -- a request that never changes: wrk sends it without calling Lua
    wrk.method, wrk.path, wrk.body = method, target, method ~= "GET" and body or nil
    wrk.headers = {Host = "localhost"}
    for i = 6, #args do
      local name, value = args[i]:match("^(.-): (.*)$")
      wrk.headers[name] = value
    end
  end
end

function done(summary, latency)
  local errors = summary.errors
  io.write(string.format(
    '{"requests": %d, "seconds": %.6f, "p50": %d, "p99": %d, "failures": %d}\n',
    summary.requests, summary.duration / 1e6, latency:percentile(50), latency:percentile(99),
    errors.connect + errors.read + errors.write + errors.status + errors.timeout
  ))
end
