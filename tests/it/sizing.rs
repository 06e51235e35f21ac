//! The tables of `packaging/sizing.md` are those that its own calculation prints.

use std::process::Command;

use walkeep_tests::Scratch;
use walkeep_tests::walkeep::run;

use crate::alerts::packaging;

#[test]
fn the_tables_are_what_the_calculation_prints() {
    let page = std::fs::read_to_string(packaging("sizing.md")).unwrap();
    let (_, rest) = page.split_once("```python\n").unwrap();
    let (calculation, _) = rest.split_once("```\n").unwrap();
    let scratch = Scratch::new();
    let file = scratch.write("sizing.py", calculation, 0o644);
    let printed = run(Command::new("python3").arg(&file));
    assert!(printed.ok(), "{printed:?}");
    let (tables, rows): (Vec<_>, Vec<_>) = printed.stdout.lines().partition(|line| line.starts_with("|---"));
    assert_eq!((tables.len(), rows.len()), (3, 16), "{printed:?}");
    for row in rows {
        assert!(page.lines().any(|line| line == row), "not on the page: {row}");
    }
}
