// The recoverable window, drawn: a lane a timeline, zoomed and picked by pointer and keys. What is in it is the agent's picture; nothing is decided here.

const SVG = "http://www.w3.org/2000/svg";
const LEFT = 12, RIGHT = 12, TOP = 8, PITCH = 52, BAND = 14, AXIS = 26, NEAR = 14;
const ACCIDENTS = ["dropped", "truncated", "unclear", "database_dropped"];
const STEPS = [1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10800, 21600, 43200, 86400, 172800, 604800, 1209600, 2419200, 7862400, 31536000];
const SMALLEST = 1e-7;

export function isAccident(kind) { return ACCIDENTS.includes(kind); }

// Everything is made by these: text is text, whatever it says.
export function element(name, attributes = {}, ...children) { return fill(document.createElement(name), attributes, children); }
function shape(name, attributes = {}, ...children) { return fill(document.createElementNS(SVG, name), attributes, children); }
function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) if (value !== undefined && value !== false) node.setAttribute(name, value);
  node.append(...children.filter((child) => child !== undefined && child !== null));
  return node;
}

export function utc(milliseconds, fraction = false) {
  const text = new Date(milliseconds).toISOString().replace("T", " ").replace("Z", "");
  return fraction ? text : text.slice(0, 19);
}

function number(lsn) { const [high, low] = lsn.split("/"); return (BigInt("0x" + high) << 32n) + BigInt("0x" + low); }
function position(value) { return (value >> 32n).toString(16).toUpperCase() + "/" + (value & 0xffffffffn).toString(16).toUpperCase(); }

export class Timeline {
  constructor(box, said, onPick) {
    this.box = box;
    this.said = said;
    this.onPick = onPick;
    this.from = 0;
    this.to = 1;
    this.cursor = null;
    box.addEventListener("keydown", (event) => this.key(event));
    box.addEventListener("wheel", (event) => this.wheel(event), { passive: false });
    box.addEventListener("pointerdown", (event) => this.press(event));
    box.addEventListener("pointermove", (event) => this.move(event));
    box.addEventListener("pointerup", (event) => this.release(event));
    box.addEventListener("pointercancel", () => { this.pressed = null; });
    new ResizeObserver(() => this.draw()).observe(box);
  }

  // A moment on the axis keeps its place in time when there is more to show.
  show(picture) {
    const before = this.picture && [this.timeAt(this.from), this.timeAt(this.to)];
    const whole = this.from === 0 && this.to === 1;
    const cursor = this.cursor && { lane: this.picture.lanes[this.cursor.lane]?.timeline, time: this.timeAt(this.cursor.at) };
    this.picture = picture;
    if (!picture) { this.box.replaceChildren(); return; }
    if (!whole && before && before[0] !== null && before[1] !== null) this.range(this.at(before[0]), this.at(before[1]));
    else if (!whole && before) this.range(0, 1);
    if (cursor) {
      const lane = picture.lanes.findIndex((lane) => lane.timeline === cursor.lane);
      this.cursor = lane >= 0 && cursor.time !== null ? { lane, at: this.at(cursor.time) } : null;
    }
    this.draw();
  }

  get byTime() { return this.picture.axis.by === "time"; }
  times() { const axis = this.picture.axis; return [Date.parse(axis.from_time), Date.parse(axis.to_time)]; }
  timeAt(at) {
    if (!this.byTime) return null;
    const [begins, ends] = this.picture.axis.timed, [from, to] = this.times();
    if (at < begins - 1e-12 || at > ends + 1e-12) return at < begins ? from : to;
    return from + (at - begins) / (ends - begins) * (to - from);
  }
  isTimed(at) { const [begins, ends] = this.picture.axis.timed; return this.byTime && at >= begins - 1e-12 && at <= ends + 1e-12; }
  at(time) {
    if (!this.byTime) return 0;
    const [begins, ends] = this.picture.axis.timed, [from, to] = this.times();
    return begins + (time - from) / (to - from) * (ends - begins);
  }
  lsnAt(at) {
    const { from_lsn: first, to_lsn: last } = this.picture.axis;
    const from = number(first), bytes = number(last) - from;
    return position(from + BigInt(Math.round(Number(bytes) * at)));
  }

  // Between two places of a lane that are known, shared out by the way between them.
  lsnOn(lane, at) {
    const points = [...lane.spans.flatMap((span) => [span.from, span.to]), ...lane.marks].sort((one, other) => one.at - other.at);
    const next = points.findIndex((point) => point.at >= at), to = points[next], from = points[next - 1];
    if (!to) return null;
    if (!from || to.at === from.at) return to.lsn;
    const [low, high] = [number(from.lsn), number(to.lsn)];
    return position(low + BigInt(Math.round(Number(high - low) * (at - from.at) / (to.at - from.at))));
  }

  get width() { return Math.max(this.box.clientWidth - LEFT - RIGHT, 50); }
  x(at) { return LEFT + (at - this.from) / (this.to - this.from) * this.width; }
  atOf(event) { return this.from + (event.clientX - this.box.getBoundingClientRect().left - LEFT) / this.width * (this.to - this.from); }
  laneOf(event) {
    const y = event.clientY - this.box.getBoundingClientRect().top + this.box.scrollTop - TOP;
    return Math.min(Math.max(Math.floor(y / PITCH), 0), this.picture.lanes.length - 1);
  }

  range(from, to) {
    const size = Math.min(Math.max(to - from, SMALLEST), 1);
    const begin = Math.min(Math.max(from, 0), 1 - size);
    [this.from, this.to] = [begin, begin + size];
  }
  zoom(factor, around) {
    const at = around ?? this.cursor?.at ?? (this.from + this.to) / 2;
    this.range(at - (at - this.from) * factor, at + (this.to - at) * factor);
    this.draw();
  }
  all() { this.range(0, 1); this.draw(); }
  last(seconds) {
    if (!this.picture || !this.byTime) return this.all();
    const [, to] = this.times();
    this.range(this.at(to - seconds * 1000), 1);
    this.draw();
  }

  wheel(event) {
    // Without a key the wheel scrolls the page.
    if (!this.picture || !(event.ctrlKey || event.shiftKey || event.deltaX)) return;
    event.preventDefault();
    if (event.ctrlKey) return this.zoom(Math.exp(Math.sign(event.deltaY) * 0.25), this.atOf(event));
    this.pan((event.deltaX || event.deltaY) / this.width);
  }
  pan(share) { const by = share * (this.to - this.from); this.range(this.from + by, this.to + by); this.draw(); }
  press(event) {
    if (!this.picture) return;
    this.pressed = { x: event.clientX, from: this.from, to: this.to, moved: false };
  }
  move(event) {
    const pressed = this.pressed;
    if (!pressed) return;
    const by = (pressed.x - event.clientX) / this.width * (pressed.to - pressed.from);
    if (!pressed.moved && Math.abs(event.clientX - pressed.x) < 5) return;
    if (!pressed.moved) { pressed.moved = true; this.box.setPointerCapture(event.pointerId); }
    this.range(pressed.from + by, pressed.to + by);
    this.draw();
  }
  release(event) {
    const pressed = this.pressed;
    this.pressed = null;
    if (!pressed || pressed.moved) return;
    const lane = this.laneOf(event), at = this.atOf(event);
    const near = this.groups(this.picture.lanes[lane]).find((group) => Math.abs(this.x(group.at) - this.x(at)) < NEAR / 2 + 2);
    this.cursor = { lane, at: near ? near.at : Math.min(Math.max(at, 0), 1) };
    if (near && near.marks.length > 1 && this.to - this.from > SMALLEST * 4) {
      const places = near.marks.map((mark) => mark.at);
      const [low, high] = [Math.min(...places), Math.max(...places)];
      if (high > low) { this.range(low - (high - low), high + (high - low)); this.draw(); return; }
    }
    this.draw();
    this.pick();
  }

  key(event) {
    if (!this.picture || event.altKey || event.metaKey || event.ctrlKey) return;
    const lanes = this.picture.lanes;
    this.cursor ??= { lane: lanes.length - 1, at: this.to };
    const cursor = this.cursor, step = (this.to - this.from) / 50;
    const keys = {
      ArrowLeft: () => { cursor.at = event.shiftKey ? this.markBeside(-1) : cursor.at - step; },
      ArrowRight: () => { cursor.at = event.shiftKey ? this.markBeside(1) : cursor.at + step; },
      ArrowUp: () => { cursor.lane = Math.max(cursor.lane - 1, 0); },
      ArrowDown: () => { cursor.lane = Math.min(cursor.lane + 1, lanes.length - 1); },
      Home: () => { cursor.at = lanes[cursor.lane].from.at; },
      End: () => { cursor.at = lanes[cursor.lane].to.at; },
      "+": () => this.zoom(0.5), "=": () => this.zoom(0.5), "-": () => this.zoom(2), "0": () => this.all(),
      Enter: () => this.pick(),
    };
    if (!keys[event.key]) return;
    event.preventDefault();
    keys[event.key]();
    cursor.at = Math.min(Math.max(cursor.at, 0), 1);
    const size = this.to - this.from;
    if (cursor.at < this.from) this.range(cursor.at - size / 4, cursor.at + size * 3 / 4);
    if (cursor.at > this.to) this.range(cursor.at - size * 3 / 4, cursor.at + size / 4);
    this.draw();
  }
  markBeside(direction) {
    const { lane, at } = this.cursor;
    const places = this.picture.lanes[lane].marks.map((mark) => mark.at).filter((place) => direction * (place - at) > 1e-12);
    if (!places.length) return at;
    return direction > 0 ? Math.min(...places) : Math.max(...places);
  }

  // The mark under the cursor, else the moment.
  pick() {
    if (!this.cursor) return;
    const lane = this.picture.lanes[this.cursor.lane], at = this.cursor.at;
    const mark = lane.marks.find((mark) => Math.abs(mark.at - at) < 1e-12);
    if (mark) return this.onPick({ mark, timeline: lane.timeline });
    if (this.isTimed(at)) return this.onPick({ time: this.timeAt(at), timeline: lane.timeline });
    // Where no time is known it is a position.
    const lsn = this.lsnOn(lane, at);
    if (lsn) return this.onPick({ lsn, timeline: lane.timeline });
    this.said.textContent = "Nothing is stored there.";
  }

  groups(lane) {
    const groups = [];
    const seen = lane.marks.filter((mark) => mark.at >= this.from && mark.at <= this.to).sort((one, other) => one.at - other.at);
    for (const mark of seen) {
      const last = groups.at(-1);
      if (last && this.x(mark.at) - this.x(last.at) < NEAR) last.marks.push(mark);
      else groups.push({ at: mark.at, marks: [mark] });
    }
    return groups;
  }

  draw() {
    if (!this.picture) return;
    const lanes = this.picture.lanes, height = TOP + lanes.length * PITCH + AXIS;
    const svg = shape("svg", { height, viewBox: `0 0 ${this.width + LEFT + RIGHT} ${height}`, "aria-hidden": "true" });
    const bottom = TOP + lanes.length * PITCH;
    this.grid(svg, bottom);
    if (this.cursor) svg.append(shape("rect", { class: "cursor-lane", x: 0, y: TOP + this.cursor.lane * PITCH, width: this.width + LEFT + RIGHT, height: PITCH }));
    const rows = new Map(lanes.map((lane, index) => [lane.timeline, index]));
    lanes.forEach((lane, index) => this.lane(svg, lane, TOP + index * PITCH, rows));
    if (this.cursor && this.cursor.at >= this.from && this.cursor.at <= this.to) {
      const x = this.x(this.cursor.at);
      svg.append(shape("line", { class: "cursor", x1: x, x2: x, y1: TOP, y2: bottom }));
    }
    this.box.replaceChildren(svg);
    this.tell();
  }

  grid(svg, bottom) {
    const [begins, ends] = this.picture.axis.timed;
    const zone = (from, to) => {
      const [left, right] = [Math.max(this.x(from), 0), Math.min(this.x(to), this.width + LEFT + RIGHT)];
      if (right - left > 1) svg.append(shape("rect", { class: "untimed", x: left, y: 0, width: right - left, height: bottom }, shape("title", {}, "Drawn by position: no time is known here")));
    };
    if (this.byTime) { zone(0, begins); zone(ends, 1); }
    for (const [at, text] of this.ticks()) {
      const x = this.x(at);
      svg.append(shape("line", { class: "grid", x1: x, x2: x, y1: 0, y2: bottom + 4 }), shape("text", { x: Math.min(Math.max(x, 30), this.width + LEFT - 20), y: bottom + 18, "text-anchor": "middle" }, text));
    }
  }
  ticks() {
    const most = Math.max(Math.floor(this.width / 120), 2);
    if (!this.byTime) return [0, 0.5, 1].map((share) => { const at = this.from + share * (this.to - this.from); return [at, this.lsnAt(at)]; });
    const [from, to] = [Math.max(this.from, this.picture.axis.timed[0]), Math.min(this.to, this.picture.axis.timed[1])].map((at) => this.timeAt(at) / 1000);
    if (!(to > from)) return [];
    const step = STEPS.find((step) => (to - from) / step <= most) ?? Math.ceil((to - from) / most / 86400) * 86400;
    const ticks = [];
    for (let at = Math.ceil(from / step) * step; at <= to && ticks.length < 50; at += step) {
      const text = utc(at * 1000);
      ticks.push([this.at(at * 1000), step >= 86400 ? text.slice(0, 10) : step >= 60 ? text.slice(5, 16) : text.slice(11)]);
    }
    return ticks.length ? ticks : [[(this.from + this.to) / 2, utc((from + to) * 500, true)]];
  }

  lane(svg, lane, top, rows) {
    const y = top + 22;
    const parent = lane.parent && rows.has(lane.parent.timeline) ? TOP + rows.get(lane.parent.timeline) * PITCH + 22 + BAND / 2 : null;
    if (parent !== null && lane.parent.at >= this.from && lane.parent.at <= this.to) {
      const x = this.x(lane.parent.at);
      svg.append(shape("path", { class: "join", d: `M ${x} ${parent} V ${y + BAND / 2}` }, shape("title", {}, `timeline ${lane.timeline} left ${lane.parent.timeline} at ${lane.parent.lsn}`)));
    }
    for (const kind of ["stored", "recoverable", "missing"]) {
      for (const span of lane.spans.filter((span) => span.kind === kind && span.to.at >= this.from && span.from.at <= this.to)) {
        const [left, right] = [Math.max(this.x(span.from.at), -2), Math.min(this.x(span.to.at), this.width + LEFT + RIGHT + 2)];
        const words = `${kind}: ${span.from.lsn} to ${span.to.lsn}${span.label ? ` (${span.label})` : ""}`;
        svg.append(shape("rect", { class: kind, x: left, y, width: Math.max(right - left, 2), height: BAND, rx: 2 }, shape("title", {}, words)));
      }
    }
    const born = lane.parent ? ` from ${lane.parent.timeline}` : "";
    svg.append(shape("text", { class: "name", x: LEFT, y: top + 14 }, `timeline ${lane.timeline}${born}`));
    for (const group of this.groups(lane)) {
      const kinds = new Set(group.marks.map((mark) => mark.kind));
      const accident = group.marks.find((mark) => isAccident(mark.kind));
      const kind = accident ? accident.kind : kinds.size > 1 ? "several" : group.marks[0].kind;
      const words = group.marks.slice(0, 12).map((mark) => [mark.label, mark.time && utc(Date.parse(mark.time)) + " UTC", mark.lsn].filter(Boolean).join(", "));
      if (group.marks.length > 12) words.push(`and ${group.marks.length - 12} more`);
      const many = group.marks.length > 1;
      svg.append(shape("circle", { class: `mark ${kind}`, cx: this.x(group.at), cy: y + BAND / 2, r: many ? 9 : 7 }, shape("title", {}, words.join("\n"))));
      if (many) svg.append(shape("text", { class: "count", x: this.x(group.at), y: y + BAND / 2 + 3.5, "text-anchor": "middle" }, group.marks.length > 99 ? "…" : String(group.marks.length)));
    }
  }

  tell() {
    if (!this.cursor) { this.said.textContent = ""; return; }
    const lane = this.picture.lanes[this.cursor.lane], at = this.cursor.at;
    const mark = lane.marks.find((mark) => Math.abs(mark.at - at) < 1e-12);
    const on = lane.spans.filter((span) => span.from.at <= at && at <= span.to.at).map((span) => span.kind);
    const how = on.includes("recoverable") ? "recoverable" : on.includes("missing") ? "MISSING" : on.includes("stored") ? "stored, not recoverable" : "nothing stored";
    const when = mark?.time ? utc(Date.parse(mark.time), true) + " UTC" : this.isTimed(at) ? utc(this.timeAt(at)) + " UTC" : this.byTime ? "no time known" : this.lsnAt(at);
    this.said.textContent = `timeline ${lane.timeline}, ${when}: ${how}${mark ? ` – ${mark.label}` : ""}`;
  }
}
