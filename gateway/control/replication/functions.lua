-- The one function that writes the tenant map in a region's Redis: a record, its history, both streams, the digest and
-- the offset change together or not at all. Its rules are those of gateway/core/replication.py, and a test holds the
-- two against each other.
--
-- KEYS[1] names the slot. ARGV[1] is the operation, ARGV[2] this region's name; what follows is the operation's own.
-- Nothing here may fail once it has written: Redis does not take back what a script did before an error.

local PREFIX = '{landbridge}:'
local TENANTS, LOG, FEED = PREFIX .. 'tenants', PREFIX .. 'log', PREFIX .. 'feed'
local META, OFFSETS, DIGEST = PREFIX .. 'meta', PREFIX .. 'offsets', PREFIX .. 'digest'
local DEAD, GATEWAYS, LEASE = PREFIX .. 'dead', PREFIX .. 'gateways', PREFIX .. 'lease'
local HISTORY = PREFIX .. 'history:'
local SWITCHES = PREFIX .. 'switches'

local LINEAGE_MAX = 8
local SUM_DIGITS = 16
local FAILOVER_MARGIN_MS = 10000
local HISTORY_MAX, HISTORY_SLACK = 20, 4
-- Two hours of fifty changes a second, some 100 MB. Who is further behind than that compares whole maps instead.
local LOG_MAX, FEED_MAX = 400000, 400000

local operation, region = ARGV[1], ARGV[2]
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)

-- === what is known of this map

local meta = redis.call('HMGET', META, 'region', 'run', 'log_id', 'log_seq', 'feed_seq', 'hlc')
if meta[1] and meta[1] ~= region then
    return {'REGION', meta[1]}
end
local run = string.match(redis.call('INFO', 'server'), 'run_id:(%x+)') or ''
local log_id, log_seq = meta[3], tonumber(meta[4] or '0')
local feed_seq, hlc = tonumber(meta[5] or '0'), tonumber(meta[6] or '0')

-- Another process than the one that wrote last: restarted, or a replica that was promoted. It may lack what that one
-- acknowledged, so its log goes by another name from now on (who follows compares whole maps), and its clock jumps
-- beyond whatever was given out there, so that no version is given twice.
local function own_the_log()
    if log_id and meta[2] == run then
        return
    end
    if log_id then
        hlc = math.max(now, hlc) + FAILOVER_MARGIN_MS
    else
        redis.call('DEL', LOG, FEED)
    end
    log_id = string.sub(redis.sha1hex(run .. time[1] .. '.' .. time[2] .. (log_id or '')), 1, 16)
end

local function keep_meta()
    redis.call('HSET', META, 'region', region, 'run', run, 'log_id', log_id, 'log_seq', string.format('%d', log_seq),
        'feed_seq', string.format('%d', feed_seq), 'hlc', string.format('%d', hlc))
end

local function may_write(token)
    return token == '' or redis.call('GET', LEASE) == token
end

-- === values

-- Bytes, whatever the server's locale thinks of the order of `-`.
local function before(a, b)
    for i = 1, math.min(#a, #b) do
        local x, y = string.byte(a, i), string.byte(b, i)
        if x ~= y then
            return x < y
        end
    end
    return #a < #b
end

local function number_before(a, b)
    if #a ~= #b then
        return #a < #b
    end
    return before(a, b)
end

local function stamp_of(value)
    if not value then
        return nil
    end
    local version, replaces, sum = string.match(value, '^1 (%S+) (%S+) (%x+)\n')
    if not version or #sum ~= SUM_DIGITS then
        return nil
    end
    local epoch, clock, where = string.match(version, '^(%d+)%.(%d+)%.(%S*)$')
    if not epoch then
        return nil
    end
    return {version = version, replaces = replaces, sum = sum, epoch = epoch, hlc = clock, region = where}
end

local function older(a, b)
    if a.epoch ~= b.epoch then
        return number_before(a.epoch, b.epoch)
    end
    if a.hlc ~= b.hlc then
        return number_before(a.hlc, b.hlc)
    end
    return before(a.region, b.region)
end

local function holds(id, stamp, value)
    local body = string.sub(value, string.find(value, '\n', 1, true) + 1)
    return string.sub(redis.sha1hex(id .. '\0' .. stamp.version .. '\0' .. body), 1, SUM_DIGITS) == stamp.sum
end

local function descends(stamp, ancestor)
    if string.find(',' .. stamp.replaces .. ',', ',' .. ancestor.version .. ',', 1, true) then
        return true
    end
    local _, commas = string.gsub(stamp.replaces, ',', ',')
    if commas + 1 < LINEAGE_MAX then
        return false
    end
    local last = string.match(stamp.replaces, '([^,]+)$')
    local epoch, clock, where = string.match(last, '^(%d+)%.(%d+)%.(%S*)$')
    return epoch ~= nil and older(ancestor, {epoch = epoch, hlc = clock, region = where})
end

local function in_history(id, version)
    for _, entry in ipairs(redis.call('LRANGE', HISTORY .. id, 0, -1)) do
        if string.match(entry, '^%d+ %S+\n1 (%S+) ') == version then
            return true
        end
    end
    return false
end

-- === what changes

-- Records are fetched and stored for a whole call at once: a command a record costs twice as much.
local PIECE = 500
local current, changed, is_changed = {}, {}, {}

-- Fetch what stands under every `step`th argument from `first` on.
local function fetch(first, step)
    for from = first, #ARGV, step * PIECE do
        local ids = {}
        for i = from, math.min(#ARGV, from + step * (PIECE - 1)), step do
            ids[#ids + 1] = ARGV[i]
        end
        for i, value in ipairs(redis.call('HMGET', TENANTS, unpack(ids))) do
            current[ids[i]] = value
        end
    end
end

local function keep_records()
    for from = 1, #changed, PIECE do
        local pairs_of = {}
        for i = from, math.min(#changed, from + PIECE - 1) do
            pairs_of[#pairs_of + 1] = changed[i]
            pairs_of[#pairs_of + 1] = current[changed[i]]
        end
        redis.call('HSET', TENANTS, unpack(pairs_of))
    end
end

-- What this call does to each bucket's digest, as two words.
local digests = {}

local function count_in_digest(sum)
    local bucket = string.sub(sum, 1, 2)
    local words = digests[bucket]
    if not words then
        words = {0, 0}
        digests[bucket] = words
    end
    words[1] = bit.bxor(words[1], tonumber(string.sub(sum, 1, 8), 16))
    words[2] = bit.bxor(words[2], tonumber(string.sub(sum, 9, 16), 16))
end

local function keep_digests()
    local buckets = {}
    for bucket in pairs(digests) do
        buckets[#buckets + 1] = bucket
    end
    if #buckets == 0 then
        return
    end
    local rows = {}
    for i, kept in ipairs(redis.call('HMGET', DIGEST, unpack(buckets))) do
        local words = digests[buckets[i]]
        kept = kept or '0000000000000000'
        rows[#rows + 1] = buckets[i]
        rows[#rows + 1] = bit.tohex(bit.bxor(words[1], tonumber(string.sub(kept, 1, 8), 16)))
            .. bit.tohex(bit.bxor(words[2], tonumber(string.sub(kept, 9, 16), 16)))
    end
    redis.call('HSET', DIGEST, unpack(rows))
end

local function append_feed(id, value, origin)
    feed_seq = feed_seq + 1
    redis.call('XADD', FEED, 'MAXLEN', '~', FEED_MAX, string.format('%d-0', feed_seq), 'i', id, 'v', value, 'o', origin)
end

local function append_log(id, value)
    log_seq = log_seq + 1
    redis.call('XADD', LOG, 'MAXLEN', '~', LOG_MAX, string.format('%d-0', log_seq), 'i', id, 'v', value)
end

local function remember(id, value, by)
    local length = redis.call('LPUSH', HISTORY .. id, string.format('%d ', now) .. by .. '\n' .. value)
    if length > HISTORY_MAX + HISTORY_SLACK then
        redis.call('LTRIM', HISTORY .. id, 0, HISTORY_MAX - 1)
    end
end

-- Make `value` the current one. `old` and `was` are what it takes the place of, `was` nil where that is no record.
local function put(id, value, stamp, old, was)
    if was then
        count_in_digest(was.sum)
        if was.version ~= stamp.version or was.sum ~= stamp.sum then
            remember(id, old, stamp.version)
        end
    end
    count_in_digest(stamp.sum)
    current[id] = value
    if not is_changed[id] then
        is_changed[id] = true
        changed[#changed + 1] = id
    end
    hlc = math.max(hlc, tonumber(stamp.hlc))
end

local is_anything_dead = redis.call('HLEN', DEAD) > 0

local function clear_letter(id)
    if is_anything_dead then
        redis.call('HDEL', DEAD, id)
    end
end

-- One value from elsewhere: A applied, D duplicate, S stale, W conflict and won, L conflict and lost. Second, what was
-- here before.
local function take(id, value, origin)
    local stamp = stamp_of(value)
    if not stamp then
        return 'S'
    end
    local old = current[id]
    local was = stamp_of(old)
    local outcome
    if not was then
        outcome = 'A'
    elseif was.version == stamp.version then
        if was.sum == stamp.sum then
            outcome = 'D'
            if old ~= value and not holds(id, was, old) then
                outcome = 'A' -- ours is damaged under a head that looks right
            end
        else
            outcome = before(was.sum, stamp.sum) and 'W' or 'L'
        end
    elseif older(was, stamp) then
        outcome = descends(stamp, was) and 'A' or 'W'
    elseif descends(was, stamp) or in_history(id, stamp.version) then
        outcome = 'S'
    else
        outcome = 'L'
    end
    if (outcome == 'S' or outcome == 'L') and not holds(id, was, old) then
        outcome = 'A' -- ours is damaged, so the version that it claims is nobody's
    end
    if outcome == 'A' or outcome == 'W' then
        put(id, value, stamp, old, was)
        append_feed(id, value, origin)
    elseif outcome == 'L' then
        remember(id, value, was.version)
        hlc = math.max(hlc, tonumber(stamp.hlc))
    end
    clear_letter(id)
    return outcome, old
end

local function finish(reply)
    keep_records()
    keep_digests()
    keep_meta()
    return reply
end

local operations = {}

-- write: (tenant, expected version or -, epoch, body)*. Answers A version seq, or X current, for each.
function operations.write()
    own_the_log()
    fetch(3, 4)
    local reply = {'OK', log_id}
    for i = 3, #ARGV, 4 do
        local id, expected, epoch, body = ARGV[i], ARGV[i + 1], ARGV[i + 2], ARGV[i + 3]
        local old = current[id]
        local was = stamp_of(old)
        if (was and was.version or '-') ~= expected or (was and number_before(epoch, was.epoch)) then
            reply[#reply + 1] = 'X'
            reply[#reply + 1] = old or ''
            reply[#reply + 1] = ''
        else
            hlc = math.max(now, hlc + 1, was and tonumber(was.hlc) + 1 or 0)
            local version = epoch .. '.' .. string.format('%d', hlc) .. '.' .. region
            local replaces = '-'
            if was then
                local ancestors = {was.version}
                for ancestor in string.gmatch(was.replaces, '[^,]+') do
                    if ancestor ~= '-' and #ancestors < LINEAGE_MAX then
                        ancestors[#ancestors + 1] = ancestor
                    end
                end
                replaces = table.concat(ancestors, ',')
            end
            local sum = string.sub(redis.sha1hex(id .. '\0' .. version .. '\0' .. body), 1, SUM_DIGITS)
            local value = '1 ' .. version .. ' ' .. replaces .. ' ' .. sum .. '\n' .. body
            put(id, value, {version = version, sum = sum, hlc = string.format('%d', hlc)}, old, was)
            append_log(id, value)
            append_feed(id, value, region .. ' ' .. log_id .. ' ' .. string.format('%d', log_seq))
            clear_letter(id)
            reply[#reply + 1] = 'A'
            reply[#reply + 1] = version
            reply[#reply + 1] = string.format('%d', log_seq)
        end
    end
    return finish(reply)
end

-- follow: peer, lease, its log_id, the first entry's seq, (tenant, value)*. An empty value counts and writes nothing.
function operations.follow()
    local peer, lease, its_log, first = ARGV[3], ARGV[4], ARGV[5], tonumber(ARGV[6])
    if not may_write(lease) then
        return {'LEASE'}
    end
    local offset_log, offset_seq = string.match(redis.call('HGET', OFFSETS, peer) or '', '^(%S+) (%d+)$')
    if offset_log ~= its_log then
        return {'RESYNC'}
    end
    local at = tonumber(offset_seq)
    if first > at + 1 then
        return {'GAP'}
    end
    own_the_log()
    fetch(7, 2)
    local outcomes, losers, duplicates = {}, {}, 0
    local seq, is_told = first, true
    for i = 7, #ARGV, 2 do
        if seq <= at then
            duplicates = duplicates + 1
        else
            is_told = false
            if ARGV[i + 1] ~= '' then
                local origin = peer .. ' ' .. its_log .. ' ' .. string.format('%d', seq)
                local outcome, was = take(ARGV[i], ARGV[i + 1], origin)
                outcomes[#outcomes + 1] = outcome
                if outcome == 'W' or outcome == 'L' then
                    losers[#losers + 1] = was
                end
                is_told = outcome == 'A' or outcome == 'W'
            end
            at = seq
        end
        seq = seq + 1
    end
    local offset = its_log .. ' ' .. string.format('%d', at)
    redis.call('HSET', OFFSETS, peer, offset)
    -- Without it a gateway would never hear that the last entries, none of which won, are in.
    if not is_told then
        append_feed('', '', peer .. ' ' .. offset)
    end
    return finish({'OK', table.concat(outcomes), tostring(duplicates), unpack(losers)})
end

-- merge: lease or empty, 1 to append to our own log too, (tenant, value)*.
function operations.merge()
    local lease, relog = ARGV[3], ARGV[4] == '1'
    if not may_write(lease) then
        return {'LEASE'}
    end
    own_the_log()
    fetch(5, 2)
    local outcomes, losers = {}, {}
    for i = 5, #ARGV, 2 do
        local origin = '-'
        if relog then
            origin = region .. ' ' .. log_id .. ' ' .. string.format('%.0f', log_seq + 1)
        end
        local outcome, was = take(ARGV[i], ARGV[i + 1], origin)
        outcomes[#outcomes + 1] = outcome
        if outcome == 'W' or outcome == 'L' then
            losers[#losers + 1] = was
        end
        if relog and (outcome == 'A' or outcome == 'W') then
            append_log(ARGV[i], ARGV[i + 1])
        end
    end
    return finish({'OK', table.concat(outcomes), '0', unpack(losers)})
end

-- resynced: peer, lease, its log_id, seq, 1 when its map is complete, what our own log was called before or empty.
function operations.resynced()
    local peer, lease, its_log, seq, own_log = ARGV[3], ARGV[4], ARGV[5], ARGV[6], ARGV[8] or ''
    if not may_write(lease) then
        return {'LEASE'}
    end
    own_the_log()
    -- Another process took over here, or somebody emptied it, since the maps were compared: what came in may be lost.
    if own_log ~= '' and own_log ~= log_id then
        return finish({'OK', '0'})
    end
    local offset_log, offset_seq = string.match(redis.call('HGET', OFFSETS, peer) or '', '^(%S+) (%d+)$')
    local is_forward = offset_log ~= its_log or tonumber(offset_seq) < tonumber(seq)
    if is_forward then
        redis.call('HSET', OFFSETS, peer, its_log .. ' ' .. seq)
    end
    if ARGV[7] == '1' then
        redis.call('HSET', META, 'complete', '1')
    end
    append_feed('', '', peer .. ' ' .. its_log .. ' ' .. seq)
    return finish({'OK', is_forward and '1' or '0'})
end

-- begin: own the log, so that a restart shows without waiting for the next write. Answers log_id.
function operations.begin()
    own_the_log()
    return finish({'OK', log_id})
end

-- complete: this map is whole.
function operations.complete()
    own_the_log()
    redis.call('HSET', META, 'complete', '1')
    append_feed('', '', '-')
    return finish({'OK'})
end

-- purge: tenant, the version of the tombstone, lease or empty.
function operations.purge()
    local id, version = ARGV[3], ARGV[4]
    if not may_write(ARGV[5]) then
        return {'LEASE'}
    end
    local value = redis.call('HGET', TENANTS, id)
    local stamp = stamp_of(value)
    if not stamp or stamp.version ~= version or not string.find(value, '"state":"deleted"', 1, true) then
        return {'OK', '0'}
    end
    own_the_log()
    count_in_digest(stamp.sum)
    redis.call('HDEL', TENANTS, id)
    redis.call('DEL', HISTORY .. id)
    append_feed(id, '', '-')
    return finish({'OK', '1'})
end

-- digests: the feed's seq at which they were counted, (bucket, digest)*. Refused when something was applied since.
function operations.digests()
    if feed_seq ~= tonumber(ARGV[3]) then
        return {'OK', '0'}
    end
    redis.call('DEL', DIGEST)
    for i = 4, #ARGV, 2 do
        redis.call('HSET', DIGEST, ARGV[i], ARGV[i + 1])
    end
    return {'OK', '1'}
end

-- register: row's key, how long ago it was seen in ms, row as JSON.
function operations.register()
    redis.call('HSET', GATEWAYS, ARGV[3], string.format('%d ', now - tonumber(ARGV[4])) .. ARGV[5])
    return {'OK'}
end

-- switch: name, when it was set in ms (0: now), JSON. The later of two counts; the answer is when that one was set.
function operations.switch()
    local current = redis.call('HGET', SWITCHES, ARGV[3])
    local known = current and tonumber(string.match(current, '^(%d+) ')) or 0
    local at = tonumber(ARGV[4])
    if at == 0 then
        at = math.max(now, known + 1)
    elseif at <= known then
        return {'OK', string.format('%d', known)}
    end
    redis.call('HSET', SWITCHES, ARGV[3], string.format('%d ', at) .. ARGV[5])
    return {'OK', string.format('%d', at)}
end

-- acquire: token, life in ms.
function operations.acquire()
    local holder = redis.call('GET', LEASE)
    -- One that has longer to live than any was given is of a clock that went back: its holder may be long gone.
    if holder and holder ~= ARGV[3] and redis.call('PTTL', LEASE) <= tonumber(ARGV[4]) then
        return {'OK', '0', holder}
    end
    redis.call('SET', LEASE, ARGV[3], 'PX', ARGV[4])
    return {'OK', '1', ARGV[3]}
end

-- release: token.
function operations.release()
    if redis.call('GET', LEASE) == ARGV[3] then
        redis.call('DEL', LEASE)
    end
    return {'OK'}
end

return operations[operation]()
