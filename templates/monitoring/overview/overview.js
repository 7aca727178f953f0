// Written by matrix-metal. The overview: what Prometheus on this machine says, as a sentence and as pictures. It only asks.
"use strict";

const MINUTE = 60, HOUR = 60 * MINUTE, DAY = 24 * HOUR;
// Days that are shown, and seconds between two looks.
const DAYS = 30, PAUSE = 30;
const LANGUAGE = "en-GB";
const clock = new Intl.DateTimeFormat(LANGUAGE, { hour: "2-digit", minute: "2-digit" });
const moment = new Intl.DateTimeFormat(LANGUAGE, { weekday: "short", hour: "2-digit", minute: "2-digit" });
const dayInUtc = new Intl.DateTimeFormat(LANGUAGE, { day: "numeric", month: "short", timeZone: "UTC" });

// What Prometheus answers.

class Silent extends Error {}

async function ask(path, values) {
  let answer;
  try {
    answer = await fetch(`api/v1/${path}?${new URLSearchParams(values)}`, { cache: "no-store", signal: AbortSignal.timeout(20000) });
  } catch {
    throw new Silent("There is no connection to the server: see whether the tunnel is still open.");
  }
  if (answer.status === 401) throw new Silent("The password was changed: load this page again.");
  if (answer.status >= 500 && answer.headers.get("Content-Type")?.includes("json") !== true)
    throw new Silent("Prometheus does not answer: `systemctl status matrix-prometheus` on the machine says why, and a deploy starts it.");
  const said = await answer.json();
  if (said.status !== "success") throw new Silent(`Prometheus cannot say it: ${said.error}`);
  return said.data;
}

const now = async (query) => (await ask("query", { query })).result.map(({ metric, value }) => ({ ...metric, value: Number(value[1]) }));
const number = async (query) => (await now(query))[0]?.value;

// A figure's way, as pairs of a moment and a value.
async function way(query, begin, end, step) {
  const { result } = await ask("query_range", { query, start: begin, end, step });
  return new Map((result[0]?.values ?? []).map(([at, value]) => [at, Number(value)]));
}

// The last day of several figures, on the same moments. The last of them is now.
async function lastDay(...queries) {
  const step = 5 * MINUTE, end = Math.floor(Date.now() / 1000), moments = [];
  for (let at = end - DAY; at <= end; at += step) moments.push(at);
  const ways = await Promise.all(queries.map((query) => way(query, end - DAY, end, step)));
  return [moments, ...ways.map((each) => moments.map((at) => finite(each.get(at))))];
}

// A figure for each day in UTC; the last is today, of which only a part is over. of: how the query is for so many seconds.
async function daily(of) {
  const today = Math.floor(Date.now() / 1000 / DAY) * DAY, passed = Math.max(MINUTE, Math.floor(Date.now() / 1000) - today);
  // Just before midnight: afterwards it would be the next day's, and in the first minutes a figure may still be the day before's.
  const full = await way(of(DAY - 20 * MINUTE), today - DAYS * DAY + DAY - MINUTE, today - MINUTE, DAY);
  const days = [], values = [];
  for (let day = today - (DAYS - 1) * DAY; day < today; day += DAY) {
    days.push(day);
    values.push(finite(full.get(day + DAY - MINUTE)));
  }
  return [[...days, today], [...values, finite(await number(of(passed)))]];
}

const finite = (value) => (Number.isFinite(value) ? value : null);

// How numbers are written.

const digits = (value, most = 1) => value.toLocaleString(LANGUAGE, { maximumFractionDigits: most });
const count = (value) => digits(Math.round(value), 0);
const memory = (bytes) => (bytes >= 2 ** 30 ? `${digits(bytes / 2 ** 30)} GiB` : `${count(bytes / 2 ** 20)} MiB`);
const disk = (bytes) => (bytes >= 1e12 ? `${digits(bytes / 1e12)} TB` : bytes >= 1e9 ? `${digits(bytes / 1e9)} GB` : `${count(bytes / 1e6)} MB`);
const plural = (value, word) => `${count(value)} ${word}${Math.round(value) === 1 ? "" : "s"}`;

const known = (value, write) => (value == null ? "Not known" : write(value));

function time(seconds) {
  if (seconds < 2 * MINUTE) return plural(seconds, "second");
  if (seconds < 2 * HOUR) return plural(seconds / MINUTE, "minute");
  return seconds < 2 * DAY ? plural(seconds / HOUR, "hour") : plural(Math.floor(seconds / DAY), "day");
}

// How it is drawn.

function element(name, properties = {}, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}

// Words between backquotes are commands.
const prose = (text) => text.split("`").map((part, index) => (index % 2 ? element("code", {}, part) : part));
const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();

// series: {label, colour, write}; bars: of whole days; unit: what is beside the axis; least: the axis goes at least so far.
function plot(place, data, series, { bars = false, least = 1, axis = digits } = {}) {
  const make = () => {
    place.chart?.destroy();
    const lines = { stroke: colour("quiet"), grid: { stroke: colour("line"), width: 1 }, ticks: { show: false }, font: "12px system-ui, sans-serif" };
    const options = {
      width: place.clientWidth, height: 170, padding: [8, 8, 0, 0],
      cursor: { y: false, drag: { x: false, y: false }, points: { show: !bars } },
      scales: {
        x: { range: (_, from, to) => (bars ? [from - DAY / 2, to + DAY / 2] : [from, to]) },
        y: { range: (_, __, most) => [0, Math.max(least, (most ?? 0) * 1.1)] },
      },
      axes: [
        { ...lines, space: 60, size: 26, grid: { show: false }, values: (_, moments) => moments.map((at) => (bars ? dayInUtc : clock).format(at * 1000)) },
        { ...lines, space: 36, size: 56, values: (_, values) => values.map(axis), ...(least === 1 && bars ? { incrs: [1, 2, 5, 10, 20, 50, 100, 200, 500, 1e3, 2e3, 5e3, 1e4, 2e4, 5e4, 1e5, 1e6] } : {}) },
      ],
      series: [
        { label: bars ? "Day" : "Time", value: (_, at) => (at == null ? "–" : (bars ? dayInUtc : moment).format(at * 1000)) },
        ...series.map((each) => ({
          label: each.label, stroke: colour(each.colour), width: bars ? 0 : 2, points: { show: false },
          fill: bars ? colour(each.colour) : undefined, dash: each.dash, spanGaps: false,
          value: (_, value) => (value == null ? "–" : each.write(value)),
          ...(bars ? { paths: uPlot.paths.bars({ size: [0.7, 40] }) } : {}),
        })),
      ],
      // Of the newest moment, as long as none is pointed at.
      hooks: { setCursor: [(chart) => chart.cursor.idx == null && chart.setLegend({ idx: data[0].length - 1 })] },
      ...(bars ? { tzDate: (at) => uPlot.tzDate(new Date(at * 1000), "Etc/UTC") } : {}),
    };
    place.chart = new uPlot(options, data, place);
    place.chart.setLegend({ idx: data[0].length - 1 });
    const last = series.map((each, index) => `${each.label}: ${known(data[index + 1].findLast((value) => value != null), each.write)}`);
    place.setAttribute("role", "img");
    place.setAttribute("aria-label", last.join(", "));
  };
  make();
  place.make = make;
}

// rows: {name, value, part: of 1, state}
function list(place, rows) {
  const lines = rows.map(({ name, value, part, state = "" }) => {
    const line = element("li", { className: state }, element("span", {}, name), element(state ? "b" : "span", {}, value));
    if (part !== undefined) line.append(element("progress", { max: 1, value: Math.min(1, Math.max(0, part)), ariaLabel: `${name}: ${value}` }));
    return line;
  });
  place.replaceChildren(...lines);
}

// What there is to see. Each asks, and shows in its card. every: seconds from one look to the next.

const byValue = (one, other) => other.value - one.value;
const sent = 'synapse_storage_events_persisted_events_sep_total{origin_type="local",type=~"m.room.(message|encrypted)"}';

const CARDS = [
  { title: "Users per day", plot: true, every: 5 * MINUTE, async show(card) {
    const data = await daily((seconds) => `max(max_over_time(matrix_metal_users_today[${seconds - (seconds % 60) || 60}s]))`);
    // Of the first minutes of today, too, the last count is right.
    data[1][DAYS - 1] = finite(await number("max(matrix_metal_users_today)")) ?? data[1][DAYS - 1];
    card.now(known(data[1][DAYS - 1], count), "people of this server were here today");
    plot(card.plot, data, [{ label: "Users", colour: "first", write: count }], { bars: true });
  } },
  { title: "Messages per day", plot: true, every: 5 * MINUTE, async show(card) {
    const data = await daily((seconds) => `sum(increase(${sent}[${seconds}s])) or 0 * sum(synapse_build_info)`);
    card.now(known(data[1][DAYS - 1], count), "were sent from here today");
    plot(card.plot, data, [{ label: "Messages", colour: "first", write: count }], { bars: true });
  } },
  { title: "Requests, last 24 hours", plot: true, every: MINUTE, async show(card) {
    const of = (name) => `sum(rate(${name}[5m]))`, failed = (name) => `(${of(`${name.slice(0, -1)},code=~"5.."}`)} or vector(0))`;
    const name = (await number("count(caddy_http_request_duration_seconds_count)")) ? 'caddy_http_request_duration_seconds_count{code!=""}' : 'synapse_http_server_responses_total{code!=""}';
    const data = await lastDay(of(name), `${failed(name)} and on () ${of(name)}`);
    const last = data.slice(1).map((each) => each.at(-1)), write = (value) => `${digits(value, 2)}/s`;
    card.now(known(last[0], write), last[0] == null ? "" : last[0] && last[1] ? `${digits((100 * last[1]) / last[0])} % of them with an error` : "without errors");
    plot(card.plot, data, [{ label: "Requests", colour: "first", write }, { label: "Errors", colour: "second", dash: [6, 3], write }], { least: 0.1, axis: (value) => `${digits(value, 2)}/s` });
  } },
  { title: "Delays in Synapse, last 24 hours", plot: true, every: MINUTE, async show(card) {
    const tick = "1000 * histogram_quantile(0.99, sum by (le) (rate(python_twisted_reactor_tick_time_bucket[5m])))";
    const wait = "1000 * sum(rate(synapse_storage_schedule_time_sum[5m])) / sum(rate(synapse_storage_schedule_time_count[5m]))";
    const data = await lastDay(tick, wait), write = (value) => `${digits(value, value < 10 ? 1 : 0)} ms`;
    card.now(known(data[1].at(-1), write), "at most, in 99 of 100 cases, until it gets to something");
    plot(card.plot, data, [{ label: "Synapse", colour: "first", write }, { label: "Database", colour: "second", dash: [6, 3], write }], { least: 10, axis: write });
  } },
  { title: "Memory of the machine, last 24 hours", plot: true, every: MINUTE, async show(card) {
    const all = await number("node_memory_MemTotal_bytes"), unit = all >= 2 ** 30 ? 2 ** 30 : 2 ** 20;
    const data = await lastDay(`(node_memory_MemTotal_bytes - node_memory_MemAvailable_bytes) / ${unit}`);
    card.now(known(data[1].at(-1), (value) => memory(value * unit)), `of ${memory(all)} in use`);
    plot(card.plot, data, [{ label: "In use", colour: "first", write: (value) => memory(value * unit) }], { least: all / unit, axis: (value) => `${digits(value)} ${unit === 2 ** 30 ? "GiB" : "MiB"}` });
  } },
  { title: "To other homeservers, last 24 hours", plot: true, every: MINUTE, async show(card) {
    const data = await lastDay("sum(synapse_federation_transaction_queue_pending_pdus)", "sum(synapse_federation_transaction_queue_pending_destinations)");
    card.now(known(data[1].at(-1), count), "messages wait to be sent");
    plot(card.plot, data, [{ label: "Messages", colour: "first", write: count }, { label: "Homeservers", colour: "second", dash: [6, 3], write: count }], { least: 5, axis: count });
  } },
  { title: "Services", every: MINUTE, async show(card) {
    const [up, used] = await Promise.all([now("matrix_metal_unit_up"), now("matrix_metal_unit_memory_bytes")]);
    const bytes = new Map(used.map(({ unit, value }) => [unit, value])), most = Math.max(1, ...bytes.values());
    const running = up.filter(({ value }) => value);
    card.now(`${running.length} of ${up.length}`, used.length ? "run, with the memory that each has" : "run");
    list(card.list, up.map(({ unit, value }) => ({ name: unit.replace(/\.service$/, ""), size: bytes.get(unit) ?? 0, down: !value }))
      .sort((one, other) => other.down - one.down || other.size - one.size)
      .map(({ name, size, down }) => {
        if (down) return { name, value: "does not run", state: "bad" };
        // Some machines do not count it.
        return used.length ? { name, value: memory(size), part: size / most } : { name, value: "runs" };
      }));
  } },
  { title: "Programs", every: MINUTE, async show(card) {
    const busy = await now("topk(8, sum by (groupname) (rate(namedprocess_namegroup_cpu_seconds_total[10m])))");
    const share = (value) => `${digits(100 * value, value < 0.1 ? 1 : 0)} %`;
    busy.sort(byValue);
    card.now(known(busy[0]?.value, share), busy.length ? `of a processor has ${busy[0].groupname}, the busiest of the last ten minutes` : "");
    list(card.list, busy.map(({ groupname, value }) => ({ name: groupname, value: share(value), part: value })));
    card.note("Of the whole machine, also what is not of the homeserver. 100 % is one processor.");
  } },
  { title: "Disk", every: MINUTE, async show(card) {
    const [size, free, left] = await Promise.all([
      now("max by (mountpoint) (node_filesystem_size_bytes)"), now("min by (mountpoint) (node_filesystem_avail_bytes)"),
      // Not from less than a day: a deploy alone would look like a disk that is full tomorrow.
      now("min by (mountpoint) (node_filesystem_avail_bytes / -(deriv(node_filesystem_avail_bytes[3d]) < -1) and count_over_time(node_filesystem_avail_bytes[3d]) > 5000)"),
    ]);
    const of = (figures, place) => figures.find(({ mountpoint }) => mountpoint === place)?.value;
    const tight = free.map((each) => ({ ...each, part: 1 - each.value / of(size, each.mountpoint) })).sort((one, other) => other.part - one.part);
    if (tight[0]) card.now(`${disk(tight[0].value)} free`, `of ${disk(of(size, tight[0].mountpoint))} at ${tight[0].mountpoint}`);
    list(card.list, tight.map(({ mountpoint, value, part }) => {
      const until = of(left, mountpoint), soon = until === undefined || until > 365 * DAY ? "" : `, full in ${time(until)}`;
      return { name: mountpoint, value: `${count(part * 100)} % used, ${disk(value)} free${soon}`, part, state: part > 0.93 || until < 7 * DAY ? "bad" : "" };
    }));
    card.note("“Full in …” is shown for a disk that grows, once it was watched for a day.");
  } },
  { title: "Certificates", every: MINUTE, async show(card) {
    const [left, valid, rules] = await Promise.all([now("probe_ssl_earliest_cert_expiry - time()"), now("probe_success"), ask("alerts", {})]);
    const late = rules.alerts.filter(({ labels }) => labels.alertname.startsWith("Certificate")).map(({ labels }) => `${labels.name} ${labels.port}`);
    const rows = valid.map(({ name, port, value }) => ({ name, port, valid: value, value: left.find((each) => each.name === name && each.port === port)?.value }));
    rows.sort((one, other) => (one.value ?? 0) - (other.value ?? 0));
    const soonest = rows[0]?.valid ? rows[0].value : undefined;
    if (rows.length) card.now(soonest > 0 ? time(soonest) : "Not valid", soonest > 0 ? "until the first one expires, if it is not renewed" : "");
    list(card.list, rows.map(({ name, port, valid, value }) => ({
      name: port === "443" ? name : `${name}, port ${port}`, value: valid && value > 0 ? time(value) : "not valid",
      state: !valid || late.includes(`${name} ${port}`) ? "bad" : "",
    })));
    card.note(rows.length ? "" : "No certificate is presented on this machine.");
  } },
  { title: "Backups", every: MINUTE, async show(card) {
    const [age, late, failed] = await Promise.all([now("time() - matrix_metal_backup_success_seconds"), now("matrix_metal_backup_late_seconds"), now("matrix_metal_backup_failed")]);
    const of = (figures, part) => figures.find((each) => each.part === part)?.value;
    age.sort(byValue);
    card.note(age.length ? "Since the last that succeeded, of each part." : "This machine makes no backups: it does not have the role backup.");
    card.now(age.length ? time(age[0].value) : "None", age.length ? "ago the oldest part was backed up" : "");
    list(card.list, age.map(({ part, value }) => ({ name: part, value: of(failed, part) ? `fails; ${time(value)} old` : `${time(value)} ago`, state: of(failed, part) || value > of(late, part) ? "bad" : "" })));
  } },
  { title: "Versions", every: 5 * MINUTE, async show(card) {
    const [found, due] = await Promise.all([now("matrix_metal_version_info"), number("max(matrix_metal_reboot_required)")]);
    list(card.list, found.map(({ component, version }) => ({ name: component, value: version })).sort((one, other) => one.name.localeCompare(other.name)));
    card.note(due ? "An update waits for a reboot." : "`manage.py NAME outdated` says what is newer.");
  } },
];

function build({ title, plot: drawn }) {
  const figure = element("p", { className: "now" }), note = element("p", { className: "note" });
  const body = drawn ? element("div", { className: "plot" }) : element("ul", { className: "list" });
  const section = element("section", {}, element("h3", {}, title), figure, body, note);
  document.getElementById("cards").append(section);
  return {
    section, plot: body, list: body, looked: 0, shown: false,
    now: (value, text) => figure.replaceChildren(`${value} `, element("small", {}, text)),
    note: (text) => note.replaceChildren(...prose(text)),
  };
}

// The sentence at the top.

function say(state, title, lines) {
  const place = document.getElementById("state");
  place.className = state;
  place.querySelector("h2").textContent = title;
  place.querySelector("ul").replaceChildren(...lines.map((line) => element("li", {}, ...line)));
  document.title = `${title} · ${document.querySelector("h1").textContent}`;
}

async function judge() {
  const [{ alerts }, figures] = await Promise.all([ask("alerts", {}), number("time() - max(matrix_metal_figures_seconds)")]);
  const told = ({ annotations, activeAt, state }) => {
    const since = `since ${moment.format(new Date(activeAt))}${state === "pending" ? ", if it lasts" : ""}`;
    return [element("b", {}, `${annotations.summary}, ${since}.`), " ", ...prose(annotations.todo)];
  };
  const firing = alerts.filter(({ state }) => state === "firing"), pending = alerts.filter(({ state }) => state === "pending");
  // The same may be true of many things; the eldest is most likely the cause.
  for (const list of [firing, pending]) list.sort((one, other) => new Date(one.activeAt) - new Date(other.activeAt));
  const lines = [...firing, ...pending].map(told);
  if (firing.length) say("bad", firing.length === 1 ? "Something is wrong" : `${firing.length} things are wrong`, lines);
  else if (figures === undefined || figures > 5 * MINUTE)
    say("warn", "It is not known how things are", [prose("There were no figures for five minutes: `journalctl -u matrix-metal-figures` says why.")]);
  else if (pending.length) say("warn", "Something may be wrong", lines);
  else say("good", "All is well", []);
}

// Again and again, as long as somebody looks.

const cards = CARDS.map((each) => ({ ...each, card: build(each) }));
const looked = document.getElementById("looked");
let looking = false;

async function look() {
  if (looking || document.hidden) return;
  looking = true;
  try {
    await judge();
    const due = cards.filter(({ card, every }) => Date.now() - card.looked >= (every - 5) * 1000);
    const results = await Promise.allSettled(due.map(async ({ card, show }) => {
      await show(card);
      card.looked = Date.now();
      card.shown = true;
      card.section.hidden = false;
      card.section.classList.remove("old");
    }));
    const problems = results.filter(({ status }) => status === "rejected").map(({ reason }) => reason);
    const silent = problems.find((each) => each instanceof Silent);
    if (silent) throw silent;
    // The sentence at the top is right in spite of a fault in a picture.
    for (const each of problems) console.error(each);
    const missing = problems.length ? `, but ${plural(problems.length, "picture")} could not be drawn` : "";
    looked.textContent = `as it was at ${new Date().toLocaleTimeString(LANGUAGE)}${missing}`;
  } catch (problem) {
    if (!(problem instanceof Silent)) console.error(problem);
    say("bad", "The state is not known at the moment", [prose(problem instanceof Silent ? problem.message : `This page has a fault: ${problem.message}`)]);
    for (const { card } of cards) {
      card.section.classList.add("old");
      card.section.hidden = !card.shown;
      card.looked = 0;
    }
  } finally {
    looking = false;
  }
}

function redraw() {
  for (const { card } of cards) card.plot.make?.();
}

const resized = new ResizeObserver((entries) => {
  for (const { target } of entries) if (target.chart && target.clientWidth !== target.chart.width) target.chart.setSize({ width: target.clientWidth, height: 170 });
});
for (const { card } of cards) resized.observe(card.plot);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
document.addEventListener("visibilitychange", look);
setInterval(look, PAUSE * 1000);
look();
