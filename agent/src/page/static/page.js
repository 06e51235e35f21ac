// What the agent tells, shown. Every text comes in as text (see `element`), whatever names are in it.

import { Timeline, element, isAccident, utc } from "./timeline.js";

const PERIOD = 5000;
const $ = (id) => document.getElementById(id);
let token = "", answered = null, wanted = null, last = null;

function store(name, value) { try { return value === undefined ? sessionStorage.getItem(name) : sessionStorage.setItem(name, value); } catch { return null; } }

// ---- words

function moment(text) { return text ? utc(Date.parse(text)) + " UTC" : "never"; }
function span(seconds) {
  if (seconds < 0.95) return `${seconds.toFixed(1)} s`;
  if (seconds < 120) return `${Math.round(seconds)} s`;
  if (seconds < 7200) return `${Math.round(seconds / 60)} min`;
  if (seconds < 172800) return `${Math.round(seconds / 3600)} h`;
  return `${Math.round(seconds / 86400)} days`;
}
function ago(text, now) { return text ? `${span(Math.max((Date.parse(now) - Date.parse(text)) / 1000, 0))} ago` : ""; }
function size(bytes) {
  const units = ["B", "kB", "MB", "GB", "TB", "PB"];
  let unit = 0, value = bytes;
  while (value >= 1000 && unit < units.length - 1) { value /= 1000; unit += 1; }
  return `${value < 10 && unit ? value.toFixed(1) : Math.round(value)} ${units[unit]}`;
}
function table(names, rows) {
  const head = element("thead", {}, element("tr", {}, ...names.map((name) => element("th", { scope: "col" }, name))));
  const brief = (value) => String(value ?? "").length <= 24 && !(value instanceof Node);
  const cell = (value, index) => element("td", { "data-label": names[index], class: brief(value) && "brief" }, value instanceof Node ? value : element("span", {}, String(value ?? "")));
  return element("table", {}, head, element("tbody", {}, ...rows.map((row) => element("tr", {}, ...row.map(cell)))));
}
function facts(list, pairs) {
  list.replaceChildren(...pairs.filter(([, value]) => value !== null && value !== undefined && value !== "").flatMap(([name, value]) => [element("dt", {}, name), element("dd", {}, String(value))]));
}
function band(kind, title, text) { return element("p", { class: `band ${kind}` }, title && element("b", {}, title), text); }

// ---- asking

async function ask(path) {
  const headers = token ? { Authorization: `Bearer ${token}` } : {};
  return fetch(path, { headers, cache: "no-store", credentials: "omit", redirect: "error", signal: AbortSignal.timeout(90000) });
}

async function look() {
  try {
    const response = await ask("page/status.json");
    if (response.status === 401) { login(token ? "That is not the token." : ""); return; }
    if (!response.ok) throw new Error((await response.text()).slice(0, 300));
    const answer = await response.json();
    answered = Date.now();
    last = answer;
    $("login").hidden = true;
    $("main").hidden = false;
    show(answer);
    stale(null);
  } catch (error) {
    stale(error);
  }
}

function login(words) {
  token = "";
  store("walkeep-token", "");
  $("main").hidden = true;
  $("login").hidden = false;
  $("fresh").textContent = "";
  $("refused").textContent = words;
  $("token").focus();
}

// Old numbers are never shown as if they were new.
function stale(error) {
  document.documentElement.classList.toggle("stale", Boolean(error) && answered !== null);
  $("stale").hidden = !error;
  if (error) $("stale").textContent = answered === null ? `The agent does not answer: ${error.message}` : `The agent does not answer. What stands here is of ${utc(answered)} UTC.`;
}

// ---- showing

const timeline = new Timeline($("timeline"), $("cursor"), picked);

function show(answer) {
  document.title = `${answer.alarms?.length ? `(${answer.alarms.length}) ` : ""}Walkeep ${answer.cluster}`;
  $("cluster").textContent = answer.cluster;
  $("fresh").textContent = `${moment(answer.now)}${answer.seen ? `; the repository as of ${ago(answer.seen.at, answer.now)}` : ""}`;
  $("version").textContent = `Walkeep ${answer.version}, running since ${moment(answer.began)}.`;
  now(answer);
  alarms(answer.alarms);
  flow(answer);
  lag(answer);
  clock(answer);
  const seen = answer.seen;
  const problem = answer.problem ?? (seen ? null : "The repository is being looked at …");
  $("window-problem").hidden = !problem;
  if (problem) $("window-problem").textContent = answer.problem ? `The repository cannot be looked at: ${problem}` : problem;
  if (seen && seen.at !== show.seen) {
    show.seen = seen.at;
    picture(seen);
    backups(seen);
    gaps(seen);
    drills(seen);
  }
}

function now(answer) {
  const { live, seen } = answer;
  const windows = seen ? seen.timelines.flatMap((timeline) => timeline.windows) : [];
  const first = windows.map((window) => window.earliest).sort((one, other) => Date.parse(one.time) - Date.parse(other.time))[0];
  const can = windows.length > 0;
  $("until").textContent = seen && !can ? "nothing" : live.recoverable_until ? moment(live.recoverable_until) : "not known yet";
  $("until-more").textContent = seen && !can ? "no backup with all its WAL: take one with walkeep backup" : `stored up to ${live.durable} on timeline ${live.timeline ?? "–"}`;
  const loss = live.possible_loss_seconds;
  $("loss").textContent = loss === null ? "not known yet" : loss < 0.05 && live.lag_bytes === 0 ? "nothing" : `${span(loss)} of commits`;
  $("loss-more").textContent = live.commits_wait ? "commits wait until they are stored" : `${live.lag_bytes ? `${size(live.lag_bytes)} of WAL on their way` : "all WAL is stored"}; ${live.phase.replace("_", " ")}`;
  $("loss-tile").classList.toggle("bad", loss !== null && loss > 60);
  $("from").textContent = first ? moment(first.time) : seen ? "nothing" : "…";
  $("from-more").textContent = first ? `backup ${first.backup}` : "";
  $("backups-count").textContent = seen ? String(seen.backup_count) : "…";
  $("backups-more").textContent = seen?.backups[0] ? `the newest ended ${ago(seen.backups[0].ended_at, answer.now)}` : seen ? "none taken yet" : "";
}

function alarms(list) {
  const shown = (list ?? []).map((alarm) => band(alarm.severity, `${alarm.alarm} (${alarm.severity})`, `${alarm.text}. Since ${moment(alarm.since)}; runbook: ${alarm.runbook}`));
  if (list && !list.length) shown.push(band("good", "", "No alarm stands."));
  if (JSON.stringify(list) === alarms.before) return;
  alarms.before = JSON.stringify(list);
  $("alarms").replaceChildren(...shown);
}

function flow({ live, repository, repositories, verified, now }) {
  facts($("flow"), [
    ["Stream", live.phase.replace("_", " ") + (live.problem ? `: ${live.problem}` : "")],
    ["Received", live.received], ["Stored", live.durable], ["The server's end", live.server_end],
    ["Waits for archive_command", live.ready[0] ? `${live.ready[0]} files, the oldest for ${span(live.ready[1])}` : "nothing"],
    ["Spool", live.spool ? `${size(live.spool[0])} of ${size(live.spool[1])}` : null],
    ["Slot", live.slot ? `${live.slot.status}${live.slot.retained_bytes !== null ? `, holds back ${size(live.slot.retained_bytes)}` : ""}${live.slot.given_up ? ", GIVEN UP" : ""}` : null],
    ["Repository", repositories.length ? null : repository],
    ["Verified", verified ? `${ago(verified.looked_at, now)}: ${verified.damaged ? `${verified.damaged} objects DAMAGED OR MISSING` : "nothing damaged or missing"}` : "not yet"],
  ]);
  const rows = repositories.map((place) => [place.url + (place.primary ? " (primary)" : ""), place.answers ? "answers" : `DOES NOT ANSWER${place.problem ? `: ${place.problem}` : ""}`,
    place.queue_objects ? `${place.queue_objects} objects, the oldest for ${span(place.behind_seconds ?? 0)}` : "nothing"]);
  $("repositories").replaceChildren(...(rows.length ? [table(["Repository", "Now", "Waits for it"], rows)] : []));
}

function picture(seen) {
  timeline.show(seen.picture);
  const notes = [];
  if (seen.log_from) notes.push(`Accidents are told since ${moment(seen.log_from)}, along the newest timeline.`);
  if (seen.log_problem) notes.push(`Accidents are not shown: ${seen.log_problem}`);
  if (seen.left_out) notes.push(`${seen.left_out} older marks and stretches are left out.`);
  if (seen.damaged_records) notes.push(`${seen.damaged_records} records are damaged and left out: walkeep verify names them.`);
  if (!seen.picture) notes.push("Nothing is stored yet.");
  $("log-note").textContent = notes.join(" ");
  const events = (seen.picture?.lanes ?? []).flatMap((lane) => lane.marks.filter((mark) => isAccident(mark.kind) || mark.kind === "restore_point").map((mark) => ({ mark, timeline: lane.timeline }))).reverse();
  $("events-count").textContent = String(events.length);
  const button = (event) => {
    const node = element("button", { type: "button", class: "small" }, event.mark.kind === "restore_point" ? "Plan it" : "Plan just before");
    node.addEventListener("click", () => picked(event));
    return node;
  };
  const rows = events.slice(0, 200).map((event) => [event.mark.time ? moment(event.mark.time) : "", event.mark.label, event.timeline, event.mark.lsn, button(event)]);
  $("events").replaceChildren(rows.length ? table(["Time", "What", "Timeline", "LSN", "Restore"], rows) : element("p", { class: "soft" }, "None."));
  const chosen = $("along").value;
  const options = seen.timelines.map((timeline) => element("option", { value: timeline.timeline }, String(timeline.timeline))).reverse();
  $("along").replaceChildren(element("option", { value: "" }, "newest"), ...options);
  $("along").value = chosen;
}

function backups(seen) {
  const usable = new Set(seen.timelines.flatMap((timeline) => timeline.windows.flatMap((window) => window.backups)));
  const kept = (keep) => !keep ? "" : keep === "forever" ? "for ever" : `until ${moment(keep.until)}`;
  const rows = seen.backups.map((backup) => [backup.id, backup.label, moment(backup.ended_at), backup.timeline, size(backup.bytes), size(backup.bytes_stored),
    [kept(backup.keep), usable.has(backup.id) ? "" : "OF NO USE: WAL of its own range is missing", backup.damage ? `${backup.damage.pages} pages had wrong checksums` : ""].filter(Boolean).join("; ")]);
  $("backups").replaceChildren(rows.length ? table(["Backup", "Label", "Ended", "Timeline", "Size", "Stored", "Kept"], rows) : element("p", { class: "soft" }, "None: nothing can be restored yet. Take one with walkeep backup."));
}

function gaps(seen) {
  const holes = seen.timelines.flatMap((timeline) => timeline.holes.map((hole) => [timeline.timeline, hole.from, hole.to, "a hole in what is stored", "open"]));
  const recorded = seen.gaps.map((gap) => [gap.timeline, gap.from, gap.to, typeof gap.cause === "string" ? gap.cause : JSON.stringify(gap.cause), gap.open ? "open" : "filled"]);
  const rows = [...recorded, ...holes];
  $("gaps").replaceChildren(rows.length ? table(["Timeline", "From", "To", "Why", "Now"], rows) : element("p", { class: "soft" }, "None: all WAL that was received is there."));
}

function drills(seen) {
  const words = { passed: "passed", failed: "FAILED", cancelled: "cancelled" };
  const rows = seen.drills.map((drill) => [moment(drill.ended_at), words[drill.verdict] + (drill.reason ? `: ${drill.reason}` : ""), drill.asked,
    drill.restored ? `timeline ${drill.restored[1]} up to ${drill.restored[2]}, from ${drill.restored[0]}` : "nothing",
    drill.rto_seconds === null ? "" : span(drill.rto_seconds), drill.rpo_seconds === null ? "" : span(drill.rpo_seconds), drill.id]);
  $("drills").replaceChildren(rows.length ? table(["Ended", "Verdict", "Asked for", "Restored", "Time", "Lost", "Drill"], rows) : element("p", { class: "soft" }, "None yet: whether a restore works was not tried. walkeep drill does."));
}

function clock({ schedules, artifacts, drill, now }) {
  const row = (what) => (one) => [`${what} ${one.name}`, one.last ? `${moment(one.last)} (${ago(one.last, now)})` : "never", one.next ? moment(one.next) : "", one.overdue ? "OVERDUE" : one.failed ? `FAILED ${ago(one.failed, now)}` : "as it should be"];
  const rows = [...schedules.map(row("backup")), ...artifacts.map(row("artifact"))];
  if (drill) rows.push(["drill", drill.last ? `${moment(drill.last)} (${ago(drill.last, now)})` : "none passed", moment(drill.next), drill.overdue ? "OVERDUE" : drill.failed ? "THE LAST ONE FAILED" : "as it should be"]);
  $("schedules").replaceChildren(rows.length ? table(["What", "Last", "Next", "How it is"], rows) : element("p", { class: "soft" }, "Nothing is done by schedule."));
}

function lag({ lag, now }) {
  const box = $("lag"), height = 120, width = Math.max(box.clientWidth, 200), left = 44;
  const end = Date.parse(now) / 1000, minutes = Math.min(Math.max(60, Math.ceil((end - (lag[0]?.at ?? end)) / 60) + 1), 1440);
  const make = (name, attributes, text) => { const node = document.createElementNS("http://www.w3.org/2000/svg", name); for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value); if (text) node.append(text); return node; };
  const svg = make("svg", { height, viewBox: `0 0 ${width} ${height}`, "aria-hidden": "true" });
  const top = 86400000, y = (ms) => height - 18 - Math.log10(1 + ms / 100) / Math.log10(1 + top / 100) * (height - 28);
  const bar = (width - left) / minutes;
  for (const [ms, text] of [[1000, "1 s"], [60000, "1 min"], [3600000, "1 h"]]) svg.append(make("line", { class: "grid", x1: left, x2: width, y1: y(ms), y2: y(ms) }), make("text", { x: left - 6, y: y(ms) + 4, "text-anchor": "end" }, text));
  for (const { at, loss_ms: loss } of lag) {
    const x = width - ((end - at) / 60) * bar;
    if (x + bar < left) continue;
    const kind = loss === null ? "nothing" : loss > 600000 ? "bar bad" : loss > 60000 ? "bar warn" : "bar";
    const edge = loss === null ? 10 : Math.min(y(loss), height - 19);
    svg.append(make("rect", { class: kind, x: Math.max(x, left), y: edge, width: Math.max(bar - (bar > 3 ? 1 : 0), 0.5), height: height - 18 - edge }));
  }
  svg.append(make("text", { x: left, y: height - 4 }, `${utc((end - minutes * 60) * 1000).slice(11, 16)} UTC`), make("text", { x: width, y: height - 4, "text-anchor": "end" }, "now"));
  box.replaceChildren(svg);
  const worst = (list) => { const known = list.filter((one) => one.loss_ms !== null); return known.length ? span(Math.max(...known.map((one) => one.loss_ms)) / 1000) : "not known"; };
  const text = `At worst ${worst(lag.filter((one) => one.at > end - 3600))} within the last hour, ${worst(lag)} since ${lag[0] ? moment(new Date(lag[0].at * 1000).toISOString()) : "now"}.`;
  $("lag-more").textContent = text;
  box.setAttribute("aria-label", text);
}

// ---- the plan

function picked({ mark, time, lsn, timeline: along }) {
  $("along").value = String(along);
  if (mark && isAccident(mark.kind)) return plan({ before: mark.lsn, timeline: along }, `just before: ${mark.label}`);
  if (mark && mark.kind === "restore_point") return plan({ restore_point: mark.label, timeline: along }, `restore point ${mark.label}`);
  const at = mark?.time ? mark.time.replace("T", " ").replace("Z", "+00") : time !== undefined ? `${utc(time, true)}+00` : null;
  if (at === null) return plan({ before: lsn ?? mark.lsn, timeline: along }, `just before ${lsn ?? mark.lsn}`);
  $("at").value = at;
  return plan({ at, timeline: along }, at);
}

async function plan(query, words) {
  const box = $("plan"), mine = wanted = {};
  box.replaceChildren(element("p", { class: "soft" }, `Planning ${words} …`));
  $("moment").scrollIntoView({ block: "nearest" });
  let text, answer;
  for (let tries = 0; tries < 30; tries += 1) {
    try {
      const parameters = new URLSearchParams(Object.entries(query).filter(([, value]) => value !== "" && value !== undefined));
      const response = await ask(`page/plan.json?${parameters}`);
      if (response.status === 429) { await new Promise((done) => setTimeout(done, 1000)); if (mine !== wanted) return; continue; }
      if (response.ok) answer = await response.json();
      else text = (await response.text()).slice(0, 2000);
    } catch (error) { text = `The agent does not answer: ${error.message}`; }
    break;
  }
  if (mine !== wanted) return;
  if (!answer) return box.replaceChildren(band("critical", "No plan.", text ?? "Another plan is being made."));
  box.replaceChildren(...(answer.refused ? [band("critical", "It cannot be reached.", answer.refused)] : accepted(answer, words)));
}

function accepted({ command, dry_run, plan }, words) {
  const transaction = (one, none) => one ? `xid ${one.xid}, ${one.committed ? "committed" : "aborted"} ${moment(one.time)} at ${one.start}` : plan.searched ? none : "not looked for";
  const list = element("dl");
  facts(list, [
    ["Target", words], ["Backup", `${plan.backup.id} ${plan.backup.label}, ended ${moment(plan.backup.ended_at)}`],
    ["Timelines", plan.path.map((leg) => `${leg.timeline}: ${leg.from} to ${leg.to}`).join("; ")], ["Stops at", plan.stop_lsn],
    ["Last commit", transaction(plan.last_replayed, "none between the backup's start and the stop")],
    ["Not replayed", transaction(plan.first_not_replayed, "nothing that is stored")],
    ["To fetch", `${size(plan.fetch_bytes)}, ${plan.wal_files} files of WAL; data directory ${size(plan.restore_bytes)}`],
    ["Time", plan.estimate?.seconds ? `about ${span(plan.estimate.seconds)}` : "not measured here yet"],
  ]);
  const line = element("pre", { id: "command", tabindex: "0" }, command), copy = element("button", { type: "button" }, "Copy the command");
  copy.addEventListener("click", async () => {
    try { await navigator.clipboard.writeText(command); copy.textContent = "Copied"; }
    catch { getSelection().selectAllChildren(line); copy.textContent = "Selected: copy it"; }
  });
  return [band("good", "It can be restored.", "Every object this needs is in the repository."), ...plan.warnings.map((warning) => band("warning", "Mind:", warning)), list,
    element("p", {}, "The command, into a directory of your choice; nothing that exists is overwritten:"), line, element("div", { class: "tools" }, copy),
    element("p", { class: "soft" }, "The same as a dry run: ", element("code", {}, dry_run))];
}

// ---- the page itself

$("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  const at = $("at").value.trim();
  plan(at ? { at, timeline: $("along").value } : { timeline: $("along").value }, at || "the end of what is stored");
});
$("latest").addEventListener("click", () => plan({ timeline: $("along").value }, "the end of what is stored"));
$("zoom-in").addEventListener("click", () => timeline.zoom(0.5));
$("zoom-out").addEventListener("click", () => timeline.zoom(2));
$("zoom-all").addEventListener("click", () => timeline.all());
$("zoom-hour").addEventListener("click", () => timeline.last(3600));
$("zoom-day").addEventListener("click", () => timeline.last(86400));
$("login").addEventListener("submit", (event) => { event.preventDefault(); token = $("token").value; store("walkeep-token", token); $("token").value = ""; look(); });

const THEMES = { "": "as the system", dark: "dark", light: "light" };
function theme(value) {
  if (value) document.documentElement.dataset.theme = value; else delete document.documentElement.dataset.theme;
  $("theme").textContent = `Colours: ${THEMES[value]}`;
}
$("theme").addEventListener("click", () => {
  const names = Object.keys(THEMES), next = names[(names.indexOf(document.documentElement.dataset.theme ?? "") + 1) % names.length];
  try { localStorage.setItem("walkeep-theme", next); } catch { /* not kept */ }
  theme(next);
});
try { const kept = localStorage.getItem("walkeep-theme") ?? ""; theme(kept in THEMES ? kept : ""); } catch { theme(""); }

// A link may bring the token behind #, which is sent to nobody.
const given = /^#token=(.+)$/.exec(location.hash);
if (given) { store("walkeep-token", decodeURIComponent(given[1])); history.replaceState(null, "", location.pathname); }
token = store("walkeep-token") ?? "";

// One cluster alone is shown at the beginning too.
$("all-clusters").href = location.pathname.includes("/cluster/") ? "../../clusters/" : "clusters/";

let looking = false;
async function turn() {
  if (looking || document.hidden || !$("login").hidden) return;
  looking = true;
  await look();
  looking = false;
}
turn();
setInterval(turn, PERIOD);
document.addEventListener("visibilitychange", turn);
addEventListener("resize", () => last && lag(last));
