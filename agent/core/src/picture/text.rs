//! A picture for the terminal: characters in columns, never wider than asked, readable without colour and in ASCII.

use super::{Lane, MARKS, Mark, MarkKind, Picture, SpanKind};

/// Lanes in one picture; of more, the newest are drawn.
const MOST_LANES: usize = 24;
/// From this width on there is room for whole words beside the lanes.
const ROOMY: usize = 48;

/// How a picture is written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TextStyle {
    /// Columns.
    pub width: usize,
    /// Only ASCII.
    pub ascii: bool,
    /// With ANSI colours.
    pub colour: bool,
}

/// One character of a lane.
#[derive(Clone, Copy, PartialEq)]
struct Cell {
    glyph: char,
    paint: Paint,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Paint {
    Plain,
    Faint,
    Good,
    Bad,
    Backup,
    Point,
}

impl Paint {
    fn code(self) -> &'static str {
        match self {
            Self::Plain => "",
            Self::Faint => "\x1b[2m",
            Self::Good => "\x1b[32m",
            Self::Bad => "\x1b[1;31m",
            Self::Backup => "\x1b[1;36m",
            Self::Point => "\x1b[1;35m",
        }
    }
}

const BLANK: Cell = Cell { glyph: ' ', paint: Paint::Plain };

/// The characters, in the one and the other alphabet.
#[derive(Clone, Copy)]
struct Glyphs {
    recoverable: char,
    stored: char,
    missing: char,
    branch: char,
    begins: char,
    down: char,
    before: char,
    after: char,
    ruler: char,
    untimed: char,
    tick: char,
}

const UNICODE: Glyphs = Glyphs {
    recoverable: '━',
    stored: '┄',
    missing: '░',
    branch: '┳',
    begins: '┗',
    down: '┃',
    before: '‹',
    after: '›',
    ruler: '─',
    untimed: '╌',
    tick: '┬',
};

const ASCII: Glyphs = Glyphs {
    recoverable: '=',
    stored: '-',
    missing: '.',
    branch: '+',
    begins: '\\',
    down: '|',
    before: '<',
    after: '>',
    ruler: '-',
    untimed: '.',
    tick: '+',
};

impl Picture {
    /// The picture in lines of at most `style.width` columns (20 where less is asked for), each with its end of line.
    pub fn text(&self, style: TextStyle) -> String {
        let width = style.width.max(20);
        let glyphs = if style.ascii { ASCII } else { UNICODE };
        let lanes = &self.lanes[self.lanes.len().saturating_sub(MOST_LANES)..];
        let word = if width >= ROOMY { "timeline " } else { "" };
        let names: Vec<String> = lanes.iter().map(|lane| format!("{word}{} ", lane.timeline)).collect();
        let gutter = names.iter().map(String::len).max().unwrap_or(0);
        let columns = width - gutter;
        let words = self.axis.words();
        let halves = words.split_once(" to ").filter(|_| words.len() > width);
        let mut lines = match halves {
            Some((from, to)) => vec![cut(from, width), cut(&format!("to {to}"), width)],
            None => vec![cut(&words, width)],
        };
        if lanes.len() < self.lanes.len() {
            lines.push(cut(&format!("{} older timelines are left out", self.lanes.len() - lanes.len()), width));
        }
        let mut rows: Vec<Vec<Cell>> = lanes.iter().map(|lane| row(lane, columns, glyphs)).collect();
        connect(lanes, &mut rows, glyphs);
        for (name, row) in names.iter().zip(&rows) {
            lines.push(format!("{name:gutter$}{}", painted(row, style.colour)));
        }
        lines.extend(self.ruler(columns, glyphs).into_iter().map(|line| format!("{:gutter$}{line}", "")));
        lines.extend(wrapped(&legend(lanes, &rows, glyphs), width));
        lines.iter().map(|line| format!("{}\n", line.trim_end())).collect()
    }

    /// The axis and its labels.
    fn ruler(&self, columns: usize, glyphs: Glyphs) -> [String; 2] {
        let untimed = |column: usize| self.axis.is_untimed(column as f64 / (columns - 1).max(1) as f64);
        let mut ruler: Vec<char> = (0..columns).map(|column| if untimed(column) { glyphs.untimed } else { glyphs.ruler }).collect();
        let mut labels: Vec<char> = vec![' '; columns];
        let mut free = 0;
        for (at, text) in self.axis.ticks((columns / 13).max(1)) {
            let (tick, length) = (column(at, columns), text.chars().count());
            // Beginning at its tick, or moved to the left at the end.
            let begins = tick.min(columns.saturating_sub(length));
            if begins < free || length > columns {
                continue;
            }
            ruler[tick] = glyphs.tick;
            text.chars().enumerate().for_each(|(index, letter)| labels[begins + index] = letter);
            free = begins + length + 1;
        }
        [ruler.into_iter().collect(), labels.into_iter().collect()]
    }
}

fn column(at: f64, columns: usize) -> usize {
    ((at * (columns - 1) as f64).round() as usize).min(columns - 1)
}

fn row(lane: &Lane, columns: usize, glyphs: Glyphs) -> Vec<Cell> {
    let mut cells = vec![BLANK; columns];
    // What counts more is painted later, and nothing is too small to be seen.
    for kind in [SpanKind::Stored, SpanKind::Recoverable, SpanKind::Missing] {
        let (glyph, paint) = match kind {
            SpanKind::Stored => (glyphs.stored, Paint::Faint),
            SpanKind::Recoverable => (glyphs.recoverable, Paint::Good),
            SpanKind::Missing => (glyphs.missing, Paint::Bad),
        };
        for span in lane.spans.iter().filter(|span| span.kind == kind) {
            cells[column(span.from.at, columns)..=column(span.to.at, columns)].fill(Cell { glyph, paint });
        }
    }
    if let Some(parent) = &lane.parent {
        cells[column(parent.point.at, columns)] = Cell { glyph: glyphs.begins, paint: Paint::Plain };
    }
    let mut marks: Vec<Vec<&Mark>> = vec![Vec::new(); columns];
    lane.marks.iter().for_each(|mark| marks[column(mark.point.at, columns)].push(mark));
    for (cell, marks) in cells.iter_mut().zip(&marks).filter(|(_, marks)| !marks.is_empty()) {
        let accident = marks.iter().any(|mark| mark.kind.is_accident());
        let alike = marks.iter().all(|mark| mark.kind == marks[0].kind);
        let several = if accident { Paint::Bad } else { Paint::Plain };
        let paint = if alike { paint(marks[0].kind) } else { several };
        *cell = Cell { glyph: if marks.len() == 1 { letter(marks[0].kind) } else { number(marks.len()) }, paint };
    }
    // A hole must not vanish under marks: it counts more than a backup, and as much as an accident.
    for span in lane.spans.iter().filter(|span| span.kind == SpanKind::Missing) {
        let hole = column(span.from.at, columns)..=column(span.to.at, columns);
        if cells[hole.clone()].iter().any(|cell| cell.glyph == glyphs.missing) {
            continue;
        }
        let free = hole.clone().find(|index| !marks[*index].iter().any(|mark| mark.kind.is_accident()));
        let glyph = if free.is_some() { glyphs.missing } else { number(marks[*hole.start()].len() + 1) };
        cells[free.unwrap_or(*hole.start())] = Cell { glyph, paint: Paint::Bad };
    }
    if lane.more_before && cells[0].glyph != ' ' && marks[0].is_empty() {
        cells[0].glyph = glyphs.before;
    }
    if lane.more_after && cells[columns - 1].glyph != ' ' && marks[columns - 1].is_empty() {
        cells[columns - 1].glyph = glyphs.after;
    }
    cells
}

/// Lines from each timeline to those that grew out of it, where nothing else stands.
fn connect(lanes: &[Lane], rows: &mut [Vec<Cell>], glyphs: Glyphs) {
    for (index, lane) in lanes.iter().enumerate() {
        let Some(parent) = &lane.parent else { continue };
        let at = column(parent.point.at, rows[index].len());
        let Some(above) = lanes[..index].iter().position(|lane| lane.timeline == parent.timeline) else { continue };
        let of_a_span = |cell: Cell| [glyphs.recoverable, glyphs.stored, ' '].contains(&cell.glyph);
        if of_a_span(rows[above][at]) {
            rows[above][at].glyph = glyphs.branch;
        }
        for row in &mut rows[above + 1..index] {
            if row[at] == BLANK {
                row[at].glyph = glyphs.down;
            }
        }
    }
}

fn letter(kind: MarkKind) -> char {
    match kind {
        MarkKind::Backup => 'B',
        MarkKind::UselessBackup => 'b',
        MarkKind::RestorePoint => 'R',
        MarkKind::Dropped => 'X',
        MarkKind::Truncated => 'T',
        MarkKind::Unclear => '?',
        MarkKind::DatabaseDropped => 'D',
    }
}

fn paint(kind: MarkKind) -> Paint {
    match kind {
        MarkKind::Backup => Paint::Backup,
        MarkKind::UselessBackup => Paint::Faint,
        MarkKind::RestorePoint => Paint::Point,
        _ => Paint::Bad,
    }
}

fn number(count: usize) -> char {
    char::from_digit(count as u32, 10).filter(|_| count < 10).unwrap_or('*')
}

/// What the characters of these rows mean.
fn legend(lanes: &[Lane], rows: &[Vec<Cell>], glyphs: Glyphs) -> Vec<String> {
    let shown = |glyph: char| rows.iter().flatten().any(|cell| cell.glyph == glyph);
    let mut items: Vec<(char, &str)> = vec![
        (glyphs.recoverable, "recoverable"),
        (glyphs.stored, "stored, not recoverable"),
        (glyphs.missing, "MISSING"),
        (glyphs.branch, "promotion"),
        (glyphs.before, "more before"),
        (glyphs.after, "more behind"),
    ];
    // Also of those that only stand in a number.
    let there = |kind: MarkKind| lanes.iter().flat_map(|lane| &lane.marks).any(|mark| mark.kind == kind);
    let is_missing =
        |glyph: char| glyph == glyphs.missing && lanes.iter().flat_map(|lane| &lane.spans).any(|span| span.kind == SpanKind::Missing);
    items.retain(|(glyph, _)| shown(*glyph) || is_missing(*glyph));
    items.extend(MARKS.into_iter().filter(|(kind, _)| there(*kind)).map(|(kind, word)| (letter(kind), word)));
    let mut words: Vec<String> = items.into_iter().map(|(glyph, word)| format!("{glyph} {word}")).collect();
    let several = |cell: &Cell| cell.glyph.is_ascii_digit() || cell.glyph == '*';
    if rows.iter().flatten().any(several) {
        words.push("2..9 * so many in one place".to_owned());
    }
    words
}

/// Items side by side in lines of this width.
fn wrapped(items: &[String], width: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for item in items {
        let item = cut(item, width);
        match lines.last_mut().filter(|line| line.chars().count() + 3 + item.chars().count() <= width) {
            Some(line) => *line = format!("{line}   {item}"),
            None => lines.push(item),
        }
    }
    lines
}

fn cut(text: &str, width: usize) -> String {
    text.chars().take(width).collect()
}

fn painted(cells: &[Cell], colour: bool) -> String {
    if !colour {
        return cells.iter().map(|cell| cell.glyph).collect();
    }
    cells
        .chunk_by(|one, other| one.paint == other.paint)
        .map(|alike| {
            let glyphs: String = alike.iter().map(|cell| cell.glyph).collect();
            let code = alike.first().map_or("", |cell| cell.paint.code());
            if code.is_empty() { glyphs } else { format!("{code}{glyphs}\x1b[0m") }
        })
        .collect()
}
