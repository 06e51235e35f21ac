// Every cluster in a line, the worst first. Every text comes in as text (see `element`), whatever names are in it.

import { element, utc } from "./timeline.js";

const PERIOD = 5000;
const WORDS = { unsafe: "NOT SAFE", at_risk: "AT RISK", unknown: "NOT KNOWN", safe: "SAFE" };
const BANDS = { unsafe: "critical", at_risk: "warning", unknown: "warning", safe: "good" };
// The page lies at the beginning, or beside the clusters' pages.
const ROOT = location.pathname.endsWith("/clusters/") ? "../" : "";
const $ = (id) => document.getElementById(id);
let token = "", answered = null;

function kept(value) { try { return value === undefined ? sessionStorage.getItem("walkeep-token") : sessionStorage.setItem("walkeep-token", value); } catch { return null; } }
function moment(text) { return text ? `${utc(Date.parse(text))} UTC` : ""; }

async function look() {
  const headers = token ? { Authorization: `Bearer ${token}` } : {};
  try {
    const response = await fetch("page/fleet.json", { headers, cache: "no-store", credentials: "omit", redirect: "error", signal: AbortSignal.timeout(90000) });
    if (response.status === 401) { login(token ? "That is not the token." : ""); return; }
    if (!response.ok) throw new Error((await response.text()).slice(0, 300));
    show(await response.json());
    answered = Date.now();
    stale(null);
  } catch (error) {
    stale(error);
  }
}

function login(words) {
  token = "";
  kept("");
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

function show(answer) {
  $("login").hidden = true;
  $("main").hidden = false;
  $("fresh").textContent = moment(answer.now);
  $("version").textContent = `Walkeep ${answer.version}.`;
  const count = (level) => answer.clusters.filter((cluster) => cluster.safety.level === level).length;
  const counts = Object.keys(WORDS).map((level) => [count(level), WORDS[level]]).filter(([number]) => number > 0);
  $("counts").textContent = counts.map(([number, word]) => `${number} ${word}`).join(", ");
  const bad = answer.clusters.length - count("safe");
  document.title = `${bad ? `(${bad}) ` : ""}Walkeep: all clusters`;
  $("clusters").replaceChildren(...answer.clusters.map(card));
  $("others").textContent = answer.problem
    ? `The other clusters of the repositories cannot be looked at: ${answer.problem}`
    : answer.others_at ? `The other clusters of the repositories as of ${moment(answer.others_at)}.` : "The other clusters of the repositories are being looked at …";
}

function card(cluster) {
  const { level, text, more } = cluster.safety;
  const name = cluster.page ? element("a", { href: ROOT + cluster.page }, cluster.cluster) : element("span", {}, cluster.cluster);
  const facts = [
    cluster.backups === null ? null : `${cluster.backups} backup${cluster.backups === 1 ? "" : "s"}`,
    cluster.newest_backup_at && `the newest ended ${moment(cluster.newest_backup_at)}`,
    cluster.stored_at && `WAL stored last ${moment(cluster.stored_at)}`,
    cluster.page ? null : "not served by this agent",
    cluster.repository,
  ].filter(Boolean);
  return element("article", { class: `band ${BANDS[level]}`, "data-cluster": cluster.cluster, "data-level": level },
    element("h3", {}, name, ` ${WORDS[level]}`),
    element("p", {}, text),
    ...more.map((line) => element("p", {}, line)),
    element("p", { class: "soft" }, facts.join(" · ")));
}

$("login").addEventListener("submit", (event) => {
  event.preventDefault();
  token = $("token").value;
  kept(token);
  $("token").value = "";
  look();
});

try { const theme = localStorage.getItem("walkeep-theme"); if (theme) document.documentElement.dataset.theme = theme; } catch { /* as the system */ }

// A link may bring the token behind #, which is sent to nobody.
const given = /^#token=(.+)$/.exec(location.hash);
if (given) { kept(decodeURIComponent(given[1])); history.replaceState(null, "", location.pathname); }
token = kept() ?? "";

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
