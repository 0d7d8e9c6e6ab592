-- wrk: a fresh event of about 400 bytes per request, of 5,000 patients. TOKEN is a token of an event-sender.
local r = math.random
wrk.method = "POST"
wrk.headers["Content-Type"] = "application/json"
wrk.headers["Authorization"] = "Bearer " .. os.getenv("TOKEN")

local threads = {}
function setup(thread) table.insert(threads, thread) end
function init() math.randomseed(os.time() * 1000 + (tonumber(tostring({}):sub(8)) or 0) % 100000); bad = 0 end

function request()
  return wrk.format(nil, nil, nil, string.format(
    '{"eventId":"%08x-%04x-4%03x-8%03x-%06x%06x","patientId":"patient-%05d","type":"vital-signs",' ..
    '"ts":"2026-03-01T12:%02d:%02d.%03dZ","data":{"heartRate":%d,"systolicBloodPressure":%d,' ..
    '"diastolicBloodPressure":%d,"oxygenSaturation":%d,"bodyTemperature":36.%d,"device":"monitor-%04d",' ..
    '"ward":"ICU-7","unit":"cardiology","note":"routine bedside measurement, patient resting, cuff on left arm"}}',
    r(0, 0x7fffffff), r(0, 0xffff), r(0, 0xfff), r(0, 0xfff), r(0, 0xffffff), r(0, 0xffffff), r(0, 4999),
    r(0, 59), r(0, 59), r(0, 999), r(50, 140), r(90, 180), r(50, 110), r(88, 100), r(0, 9), r(0, 9999)))
end

function response(status) if status ~= 202 then bad = bad + 1 end end

function done(summary, latency)
  local b = 0
  for _, thread in ipairs(threads) do b = b + (tonumber(thread:get("bad")) or 0) end
  local errors = summary.errors.connect + summary.errors.read + summary.errors.write + summary.errors.timeout
  print(string.format("RESULT %.0f %.2f %.2f %.2f %d", (summary.requests - b) / (summary.duration / 1e6),
    latency:percentile(50) / 1e3, latency:percentile(99) / 1e3, latency.max / 1e3, b + errors))
end
