-- A region's table of shares: which part of each hot limit every gateway may spend. Its rules are those of
-- gateway/core/shares.py (class Table), and a test holds the two against each other.
--
-- KEYS[1] is a hash: gateway to its row, and '@' to what is known of the table itself. ARGV[1] is `call` or `leave`,
-- ARGV[2] the gateway. A call goes on with its divisor, how many gateways it knows of, and for each key that it has
-- something to say of: key, share held, demand. The answer: gateways, divisor, and for each key that is hot in this
-- region: key, share (`-`: equal parts again).

local SHARES = KEYS[1]
local FLOOR, HEADROOM = 0.015, 1.05
local FLAT, EQUAL, FORGOTTEN, AHEAD = 30, 60, 600, 2
local SILENT, HOT, SETTLE = 1, 3, 2
local EPSILON, COLD = 1e-9, 1e-6

local me = ARGV[2]
if ARGV[1] == 'leave' then
    return redis.call('HDEL', SHARES, me)
end

local time = redis.call('TIME')
local now = tonumber(time[1]) + tonumber(time[2]) / 1000000
local run = string.match(redis.call('INFO', 'server'), 'run_id:(%x+)') or ''

-- === what is known

local rows, meta = {}, nil
local flat = redis.call('HGETALL', SHARES)
for i = 1, #flat, 2 do
    local value = cmsgpack.unpack(flat[i + 1])
    if flat[i] == '@' then
        meta = value
    else
        rows[flat[i]] = value
    end
end
-- Another process than the one that wrote last may hold an old table: the gateways know better.
if not meta or meta.run ~= run then
    redis.call('DEL', SHARES)
    rows, meta = {}, {run = run, born = now, expected = 0}
end
for name, row in pairs(rows) do
    if now - row.seen > FORGOTTEN then
        rows[name] = nil
        redis.call('HDEL', SHARES, name)
    end
end

-- === what this gateway says

local using, seen = tonumber(ARGV[3]), tonumber(ARGV[4])
local before = rows[me] and rows[me].keys or {}
local mine = {seen = now, using = using, keys = {}}
for i = 5, #ARGV, 3 do
    local demand = tonumber(ARGV[i + 2])
    local known = before[ARGV[i]]
    local hot_at = demand > 0 and now or known and known.hot_at or -1
    mine.keys[ARGV[i]] = {held = tonumber(ARGV[i + 1]), demand = demand, hot_at = hot_at}
end
rows[me] = mine

-- === how many parts

local count = 0
for _ in pairs(rows) do
    count = count + 1
end
local settles = now - meta.born < SETTLE
if settles then
    meta.expected = math.max(meta.expected, seen)
    settles = count < meta.expected
end
if settles then
    count = math.max(count, meta.expected)
end
local parts = using
if not settles then
    local taken = 1 / count
    for name, row in pairs(rows) do
        if name ~= me and row.using > 0 then
            taken = taken + 1 / row.using
        end
    end
    parts = taken <= 1 + EPSILON and count or 0
end

-- === shares

local function drift(share, equal, silent)
    if silent <= FLAT then
        return share
    end
    return share + (equal - share) * math.min(1, (silent - FLAT) / (EQUAL - FLAT))
end

local function part_of(row)
    return row.using > 0 and 1 / row.using or FLOOR / count
end

local function holds(row, key)
    local known = row.keys[key]
    return known and known.held or part_of(row)
end

-- Max-min fairness; what the first of `wants` gets, and what all get together.
local function fill(wants, total)
    local order = {}
    for i = 1, #wants do
        order[i] = i
    end
    table.sort(order, function(a, b) return wants[a] < wants[b] end)
    local left, waiting, first = total, #wants, 0
    for _, i in ipairs(order) do
        local got = math.min(wants[i], left / waiting)
        if i == 1 then
            first = got
        end
        left, waiting = left - got, waiting - 1
    end
    return first, total - left
end

local function target(demands, total)
    local floor = math.min(FLOOR / count, total / #demands)
    local rest = math.max(0, total - floor * #demands)
    local wants = {}
    for i, demand in ipairs(demands) do
        wants[i] = math.max(0, demand * HEADROOM - floor)
    end
    local first, all = fill(wants, rest)
    return floor + first + math.max(0, rest - all) / #demands
end

local function share_of(key)
    local own = mine.keys[key]
    local held = holds(mine, key)
    local demands, kept, others, largest, is_hot = {own and own.demand or 0}, 0, 0, held, false
    for name, row in pairs(rows) do
        local known = row.keys[key]
        if known and known.hot_at >= 0 and now - known.hot_at <= HOT then
            is_hot = true
        end
        if name ~= me then
            local its, silent = holds(row, key), now - row.seen
            if silent > SILENT then
                local equal = part_of(row)
                its = math.max(drift(its, equal, silent), drift(its, equal, silent + AHEAD))
                kept = kept + its
            else
                table.insert(demands, known and known.demand or 0)
            end
            others = others + its
            largest = math.max(largest, its)
        end
    end
    if not is_hot and parts > 0 and not settles and largest <= 1 / count + COLD then
        return nil
    end
    local floor = FLOOR / count
    local wanted = target(demands, math.max(0, 1 - kept))
    local share = math.max(math.min(floor, 1), held >= wanted and wanted or math.min(wanted, 1 - others))
    return settles and math.min(share, math.max(held, floor)) or share
end

local names, is_named = {}, {}
for _, row in pairs(rows) do
    for key in pairs(row.keys) do
        if not is_named[key] then
            is_named[key] = true
            table.insert(names, key)
        end
    end
end
local answer = {tostring(count), tostring(parts)}
for _, key in ipairs(names) do
    local share = share_of(key)
    table.insert(answer, key)
    if share then
        local said = mine.keys[key] or {held = 0, demand = 0, hot_at = -1}
        said.held = math.max(said.held, share)
        mine.keys[key] = said
        table.insert(answer, string.format('%.12f', share))
    else
        mine.keys[key] = nil
        table.insert(answer, '-')
    end
end
mine.using = (using > 0 and parts > 0) and math.min(using, parts) or math.max(using, parts)

redis.call('HSET', SHARES, me, cmsgpack.pack(mine), '@', cmsgpack.pack(meta))
return answer
