//! A picture as an SVG file: nothing in it is fetched or run, names are text and nothing else, and it is readable in dark and in light.
//!
//! Each thing drawn has a title, which browsers show beside the pointer: the exact position, the time, the name.

use std::fmt::Write;

use super::{Lane, MARKS, Mark, MarkKind, Picture, Point, Span, SpanKind};

const WIDTH: f64 = 960.0;
const LEFT: f64 = 124.0;
const RIGHT: f64 = 28.0;
const TOP: f64 = 96.0;
const PITCH: f64 = 58.0;
const BAND: f64 = 14.0;
/// Marks nearer than this are one.
const NEAR: f64 = 20.0;
/// About the width of a letter of a label.
const LETTER: f64 = 6.1;
/// Lines in one title.
const TITLES: usize = 12;

/// Colours by class, since not every program that shows an SVG knows variables; the dark ones for those that ask.
const STYLE: &str = "
.wk { font-family: system-ui, -apple-system, 'Segoe UI', 'DejaVu Sans', sans-serif; font-size: 12px }
.wk-ground { fill: #ffffff } .wk-ink { fill: #1f2328 } .wk-soft { fill: #59636e } .wk-title { font-size: 17px; font-weight: 600 }
.wk-name { font-size: 13px; font-weight: 600 } .wk-small { font-size: 11px }
.wk-grid { stroke: #d8dee4; stroke-width: 1 } .wk-axis { stroke: #9aa4ae; stroke-width: 1.5 } .wk-untimed { stroke-dasharray: 2 4 }
.wk-zone { fill: #59636e; fill-opacity: .06 } .wk-join { fill: none; stroke: #59636e; stroke-width: 2 }
.wk-stored { fill: #b6bfc8 } .wk-recoverable { fill: #2da44e } .wk-missing { fill: url(#wk-hole); stroke: #cf222e; stroke-width: 1 }
.wk-hatch { stroke: #cf222e; stroke-width: 3 } .wk-hatch-ground { fill: #ffebe9 }
.wk-ring { stroke: #ffffff; stroke-width: 2 } .wk-backup { fill: #0969da } .wk-useless { fill: #8c959f } .wk-point { fill: #8250df }
.wk-accident { fill: #cf222e } .wk-unclear { fill: #bc4c00 } .wk-several { fill: #57606a } .wk-on { fill: #ffffff; font-weight: 600; font-size: 10.5px }
.wk-cross { stroke: #ffffff; stroke-width: 2; stroke-linecap: round } .wk-lead { stroke: #9aa4ae; stroke-width: 1 }
.wk-label-accident { fill: #a40e26 } .wk-label-point { fill: #6639ba }
@media (prefers-color-scheme: dark) {
.wk-ground { fill: #0d1117 } .wk-ink { fill: #e6edf3 } .wk-soft { fill: #9198a1 } .wk-grid { stroke: #262c34 } .wk-axis { stroke: #656c76 }
.wk-zone { fill: #9198a1; fill-opacity: .08 } .wk-join { stroke: #9198a1 } .wk-stored { fill: #4d5661 } .wk-recoverable { fill: #2ea043 }
.wk-missing { stroke: #f85149 } .wk-hatch { stroke: #f85149 } .wk-hatch-ground { fill: #3c1618 } .wk-ring { stroke: #0d1117 }
.wk-backup { fill: #388bfd } .wk-useless { fill: #656c76 } .wk-point { fill: #a371f7 } .wk-accident { fill: #f85149 } .wk-unclear { fill: #db6d28 }
.wk-several { fill: #9198a1 } .wk-on { fill: #0d1117 } .wk-cross { stroke: #0d1117 } .wk-lead { stroke: #656c76 }
.wk-label-accident { fill: #ff7b72 } .wk-label-point { fill: #d2a8ff }
}
";

impl Picture {
    /// The picture as an SVG document under this heading.
    pub fn svg(&self, heading: &str) -> String {
        let lanes_end = TOP + self.lanes.len() as f64 * PITCH;
        let legend = self.legend();
        let height = lanes_end + 62.0 + 22.0 * legend.lines as f64;
        let mut out = String::new();
        let heading = escaped(heading);
        let words = escaped(&self.axis.words());
        // Writing into a String cannot fail.
        let _ = write!(
            out,
            "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n\
             <svg xmlns=\"http://www.w3.org/2000/svg\" class=\"wk\" width=\"{WIDTH}\" height=\"{height}\" viewBox=\"0 0 {WIDTH} {height}\" role=\"img\">\n\
             <title>{heading}: {words}</title>\n<style>{STYLE}</style>\n\
             <defs><pattern id=\"wk-hole\" width=\"8\" height=\"8\" patternUnits=\"userSpaceOnUse\" patternTransform=\"rotate(45)\">\
             <rect class=\"wk-hatch-ground\" width=\"8\" height=\"8\"/><line class=\"wk-hatch\" x1=\"0\" y1=\"0\" x2=\"0\" y2=\"8\"/></pattern></defs>\n\
             <rect class=\"wk-ground\" width=\"{WIDTH}\" height=\"{height}\"/>\n\
             <text class=\"wk-ink wk-title\" x=\"24\" y=\"36\">{heading}</text>\n\
             <text class=\"wk-soft\" x=\"24\" y=\"57\">{words}</text>\n"
        );
        self.grid(&mut out, lanes_end);
        self.joins(&mut out);
        for (index, lane) in self.lanes.iter().enumerate() {
            draw(&mut out, lane, y(index));
        }
        let _ = write!(out, "<g transform=\"translate(24 {:.0})\">{}</g>\n</svg>\n", lanes_end + 62.0, legend.items);
        out
    }

    /// Lines of the axis' labels, and the zones that have no times.
    fn grid(&self, out: &mut String, bottom: f64) {
        let (begins, ends) = self.axis.timed;
        let zone = |out: &mut String, from: f64, to: f64, words: &str| {
            let (left, width) = (x(from), x(to) - x(from));
            let top = TOP - 24.0;
            let _ = writeln!(
                out,
                "<rect class=\"wk-zone\" x=\"{left:.1}\" y=\"{top}\" width=\"{width:.1}\" height=\"{:.1}\"><title>{words}</title></rect>\
                 <line class=\"wk-axis wk-untimed\" x1=\"{left:.1}\" y1=\"{bottom}\" x2=\"{:.1}\" y2=\"{bottom}\"/>",
                bottom - top,
                x(to)
            );
            if width > 90.0 {
                let _ = writeln!(
                    out,
                    "<text class=\"wk-soft wk-small\" x=\"{:.1}\" y=\"{}\" text-anchor=\"middle\">by position</text>",
                    left + width / 2.0,
                    bottom + 20.0
                );
            }
        };
        let by_time = ends > begins;
        if by_time && begins > 0.0 {
            zone(out, 0.0, begins, "Before the first known time: drawn by position");
        }
        if by_time && ends < 1.0 {
            zone(out, ends, 1.0, "Behind the last known time: drawn by position");
        }
        let (from, to) = if by_time { (begins, ends) } else { (0.0, 1.0) };
        let _ = writeln!(out, "<line class=\"wk-axis\" x1=\"{:.1}\" y1=\"{bottom}\" x2=\"{:.1}\" y2=\"{bottom}\"/>", x(from), x(to));
        let mut free = 0.0;
        for (at, text) in self.axis.ticks((((to - from) * 9.0) as usize).max(1)) {
            let (left, half) = (x(at), text.len() as f64 * LETTER / 2.0);
            if left - half < free {
                continue;
            }
            free = left + half + 8.0;
            let _ = writeln!(
                out,
                "<line class=\"wk-grid\" x1=\"{left:.1}\" y1=\"{}\" x2=\"{left:.1}\" y2=\"{bottom}\"/>\
                 <line class=\"wk-axis\" x1=\"{left:.1}\" y1=\"{bottom}\" x2=\"{left:.1}\" y2=\"{}\"/>\
                 <text class=\"wk-soft wk-small\" x=\"{left:.1}\" y=\"{}\" text-anchor=\"middle\">{}</text>",
                TOP - 24.0,
                bottom + 5.0,
                bottom + 20.0,
                escaped(&text)
            );
        }
    }

    /// A line from each timeline to those that grew out of it.
    fn joins(&self, out: &mut String) {
        for (index, lane) in self.lanes.iter().enumerate() {
            let Some(parent) = &lane.parent else { continue };
            let Some(above) = self.lanes[..index].iter().position(|lane| lane.timeline == parent.timeline) else { continue };
            let (left, from, to) = (x(parent.point.at), y(above) + BAND / 2.0, y(index));
            let _ = writeln!(
                out,
                "<path class=\"wk-join\" d=\"M{left:.1} {from:.1}V{:.1}Q{left:.1} {to:.1} {:.1} {to:.1}\"><title>timeline {} left timeline {} at {}</title></path>",
                to - 8.0,
                (left + 8.0).min(x(1.0)),
                lane.timeline,
                parent.timeline,
                parent.point.lsn
            );
        }
    }

    fn legend(&self) -> Legend {
        let spans = |kind| self.lanes.iter().flat_map(|lane| &lane.spans).any(|span| span.kind == kind);
        let marks = |kind| self.lanes.iter().flat_map(|lane| &lane.marks).any(|mark| mark.kind == kind);
        let mut legend = Legend::default();
        for (kind, word) in
            [(SpanKind::Recoverable, "recoverable"), (SpanKind::Stored, "stored, not recoverable"), (SpanKind::Missing, "missing")]
        {
            if spans(kind) && (kind != SpanKind::Stored || self.shows_stored()) {
                let (left, top) = legend.room(word);
                let _ = write!(
                    legend.items,
                    "<rect class=\"{}\" x=\"{left:.1}\" y=\"{:.1}\" width=\"20\" height=\"10\" rx=\"2\"/>",
                    class_of_span(kind),
                    top - 9.0
                );
                legend.word(word, left + 28.0, top);
            }
        }
        for (kind, word) in MARKS {
            if marks(kind) {
                let (left, top) = legend.room(word);
                legend.items.push_str(&shape(kind, left + 12.0, top - 4.0));
                legend.word(word, left + 28.0, top);
            }
        }
        legend
    }

    /// Whether WAL is to be seen that no backup leads to.
    fn shows_stored(&self) -> bool {
        self.lanes.iter().any(|lane| {
            let of = |kind| lane.spans.iter().filter(move |span| span.kind == kind);
            of(SpanKind::Stored)
                .any(|stored| !of(SpanKind::Recoverable).any(|over| over.from.at <= stored.from.at && over.to.at >= stored.to.at))
        })
    }
}

/// What things mean, side by side.
#[derive(Default)]
struct Legend {
    items: String,
    left: f64,
    lines: usize,
}

impl Legend {
    /// Where the next item goes.
    fn room(&mut self, word: &str) -> (f64, f64) {
        let width = 28.0 + word.len() as f64 * LETTER + 26.0;
        if self.lines == 0 || self.left + width > WIDTH - 48.0 {
            (self.left, self.lines) = (0.0, self.lines + 1);
        }
        let left = self.left;
        self.left += width;
        (left, (self.lines - 1) as f64 * 22.0)
    }

    fn word(&mut self, word: &str, left: f64, top: f64) {
        let _ = writeln!(self.items, "<text class=\"wk-soft\" x=\"{left:.1}\" y=\"{top:.1}\">{word}</text>");
    }
}

fn x(at: f64) -> f64 {
    LEFT + at * (WIDTH - LEFT - RIGHT)
}

/// The middle of a lane's band.
fn y(index: usize) -> f64 {
    TOP + index as f64 * PITCH + PITCH / 2.0
}

fn draw(out: &mut String, lane: &Lane, middle: f64) {
    let _ = writeln!(out, "<text class=\"wk-ink wk-name\" x=\"24\" y=\"{:.1}\">timeline {}</text>", middle + 4.5, lane.timeline);
    for kind in [SpanKind::Stored, SpanKind::Recoverable, SpanKind::Missing] {
        lane.spans.iter().filter(|span| span.kind == kind).for_each(|span| band(out, lane, span, middle));
    }
    lane.spans.iter().filter(|span| span.kind == SpanKind::Missing).for_each(|span| pointer(out, lane, span, middle));
    for (seen, left) in [(lane.more_before, x(0.0) - 12.0), (lane.more_after, x(1.0) + 6.0)] {
        if seen {
            let arrow = if left < x(0.0) { "‹" } else { "›" };
            let _ = writeln!(
                out,
                "<text class=\"wk-soft wk-name\" x=\"{left:.1}\" y=\"{:.1}\">{arrow}<title>more of it</title></text>",
                middle + 4.5
            );
        }
    }
    let mut free = LEFT - 20.0;
    let mut rest = &lane.marks[..];
    while let Some(begins) = rest.first().map(|mark| x(mark.point.at)) {
        let group;
        (group, rest) = rest.split_at(rest.iter().take_while(|mark| x(mark.point.at) - begins < NEAR).count().max(1));
        let (first, last) = (x(group[0].point.at), x(group[group.len() - 1].point.at));
        let centre = (first + last) / 2.0;
        let titles: Vec<String> = group.iter().take(TITLES).map(|mark| title(&mark.label, &mark.point)).collect();
        let more = if group.len() > TITLES { format!("\n… and {} more", group.len() - TITLES) } else { String::new() };
        let shape = if let [mark] = group { shape(mark.kind, centre, middle) } else { badge(group, centre, middle) };
        let _ = writeln!(out, "<g><title>{}{more}</title>{shape}</g>", titles.join("\n"));
        caption(out, group, centre, middle, &mut free);
    }
}

fn band(out: &mut String, lane: &Lane, span: &Span, middle: f64) {
    // Nothing is too small to be seen.
    let (left, width) = (x(span.from.at), (x(span.to.at) - x(span.from.at)).max(3.0));
    let what = match span.kind {
        SpanKind::Stored => "WAL stored",
        SpanKind::Recoverable => "recoverable",
        SpanKind::Missing => "MISSING",
    };
    let why = if span.label.is_empty() { String::new() } else { format!(" ({})", escaped(&span.label)) };
    let time = span.from.time.map_or_else(String::new, |time| format!(", {time}"));
    let _ = writeln!(
        out,
        "<rect class=\"{}\" x=\"{left:.1}\" y=\"{:.1}\" width=\"{width:.1}\" height=\"{BAND}\" rx=\"3\">\
         <title>timeline {}, {what}{why}: {}{time} to {}</title></rect>",
        class_of_span(span.kind),
        middle - BAND / 2.0,
        lane.timeline,
        span.from.lsn,
        span.to.lsn
    );
}

/// Points at a hole from below, since marks may lie over it.
fn pointer(out: &mut String, lane: &Lane, span: &Span, middle: f64) {
    let (centre, top) = ((x(span.from.at) + x(span.to.at)) / 2.0, middle + BAND / 2.0 + 4.0);
    let _ = writeln!(
        out,
        "<path class=\"wk-accident\" d=\"M{centre:.1} {top:.1}l5 8h-10z\"><title>timeline {}, MISSING: {} to {}</title></path>",
        lane.timeline, span.from.lsn, span.to.lsn
    );
}

fn title(label: &str, point: &Point) -> String {
    let time = point.time.map_or_else(String::new, |time| format!(" at {time}"));
    format!("{}{time}, {}", escaped(label), point.lsn)
}

/// Words above what somebody may look for, where there is room.
fn caption(out: &mut String, group: &[Mark], centre: f64, middle: f64, free: &mut f64) {
    let wanted = group.iter().filter(|mark| mark.kind.is_accident() || mark.kind == MarkKind::RestorePoint);
    let Some(first) = wanted.clone().min_by_key(|mark| !mark.kind.is_accident()) else { return };
    let others = wanted.count() - 1;
    let mut words: String = first.label.chars().take(26).collect();
    if words.len() < first.label.len() {
        words.push('…');
    }
    if others > 0 {
        let _ = write!(words, " +{others}");
    }
    let half = words.chars().count() as f64 * LETTER / 2.0;
    let text_at = centre.clamp(LEFT - 20.0 + half, WIDTH - 8.0 - half);
    if text_at - half < *free {
        return;
    }
    *free = text_at + half + 10.0;
    let class = if first.kind.is_accident() { "wk-label-accident" } else { "wk-label-point" };
    let _ = writeln!(
        out,
        "<line class=\"wk-lead\" x1=\"{centre:.1}\" y1=\"{:.1}\" x2=\"{centre:.1}\" y2=\"{:.1}\"/>\
         <text class=\"{class} wk-small\" x=\"{text_at:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
        middle - 17.0,
        middle - 10.0,
        middle - 21.0,
        escaped(&words)
    );
}

fn class_of_span(kind: SpanKind) -> &'static str {
    match kind {
        SpanKind::Stored => "wk-stored",
        SpanKind::Recoverable => "wk-recoverable",
        SpanKind::Missing => "wk-missing",
    }
}

fn class_of_mark(kind: MarkKind) -> &'static str {
    match kind {
        MarkKind::Backup => "wk-backup",
        MarkKind::UselessBackup => "wk-useless",
        MarkKind::RestorePoint => "wk-point",
        MarkKind::Unclear => "wk-unclear",
        MarkKind::Dropped | MarkKind::Truncated | MarkKind::DatabaseDropped => "wk-accident",
    }
}

/// Each kind has a form of its own, so that colour says nothing alone.
fn shape(kind: MarkKind, x: f64, y: f64) -> String {
    let class = class_of_mark(kind);
    match kind {
        MarkKind::Backup | MarkKind::UselessBackup => format!(
            "<rect class=\"{class} wk-ring\" x=\"{:.1}\" y=\"{:.1}\" width=\"12\" height=\"16\" rx=\"3\"/>\
             <path class=\"wk-cross\" d=\"M{:.1} {:.1}h5M{:.1} {:.1}h5\"/>",
            x - 6.0,
            y - 8.0,
            x - 2.5,
            y - 2.5,
            x - 2.5,
            y + 2.5
        ),
        MarkKind::RestorePoint => {
            format!("<path class=\"{class} wk-ring\" d=\"M{x:.1} {:.1}l8 8l-8 8l-8 -8z\"/>", y - 8.0)
        }
        MarkKind::Dropped | MarkKind::DatabaseDropped => {
            let body = if kind == MarkKind::Dropped {
                format!("<circle class=\"{class} wk-ring\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"8.5\"/>")
            } else {
                format!("<rect class=\"{class} wk-ring\" x=\"{:.1}\" y=\"{:.1}\" width=\"17\" height=\"17\" rx=\"2\"/>", x - 8.5, y - 8.5)
            };
            format!("{body}<path class=\"wk-cross\" d=\"M{:.1} {:.1}l6 6m0 -6l-6 6\"/>", x - 3.0, y - 3.0)
        }
        MarkKind::Truncated => format!(
            "<circle class=\"{class} wk-ring\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"8.5\"/><path class=\"wk-cross\" d=\"M{:.1} {y:.1}h7\"/>",
            x - 3.5
        ),
        MarkKind::Unclear => format!(
            "<circle class=\"{class} wk-ring\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"8.5\"/>\
             <text class=\"wk-on\" x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"middle\">?</text>",
            y + 3.8
        ),
    }
}

/// Several marks in one place.
fn badge(group: &[Mark], x: f64, y: f64) -> String {
    let number = group.len().to_string();
    let width = 12.0 + number.len() as f64 * 6.5;
    let alike = group.iter().all(|mark| mark.kind == group[0].kind);
    let class = match group.iter().find(|mark| mark.kind.is_accident()) {
        Some(accident) => class_of_mark(accident.kind),
        None if alike => class_of_mark(group[0].kind),
        None => "wk-several",
    };
    format!(
        "<rect class=\"{class} wk-ring\" x=\"{:.1}\" y=\"{:.1}\" width=\"{width:.1}\" height=\"18\" rx=\"9\"/>\
         <text class=\"wk-on\" x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{number}</text>",
        x - width / 2.0,
        y - 9.0,
        y + 3.8
    )
}

/// Text that XML takes for text, whatever somebody called a restore point.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            '\t' | '\n' | '\r' => out.push(' '),
            // No XML document may hold these.
            '\u{0}'..='\u{1f}' | '\u{fffe}' | '\u{ffff}' => out.push('\u{fffd}'),
            _ => out.push(letter),
        }
    }
    out
}
