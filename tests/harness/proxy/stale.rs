//! Listings that are behind, and in no order, as of a store that is only eventually consistent.

use super::archive::element;

/// A listing's document without the objects whose key has this text, and with the others backwards.
pub fn stale(document: &str, without: &str) -> String {
    let (mut frame, mut objects, mut rest) = (String::new(), Vec::new(), document);
    let mut at_first = None;
    while let Some((from, to)) = element(rest, "Contents") {
        frame.push_str(&rest[..from]);
        at_first.get_or_insert(frame.len());
        let object = &rest[from..to];
        let key = object.split_once("<Key>").and_then(|(_, behind)| behind.split_once("</Key>")).map_or("", |(key, _)| key);
        if !key.contains(without) {
            objects.push(object);
        }
        rest = &rest[to..];
    }
    frame.push_str(rest);
    objects.reverse();
    frame.insert_str(at_first.unwrap_or_default(), &objects.concat());
    frame
}

#[cfg(test)]
mod tests {
    #[test]
    fn some_are_left_out_and_the_others_turned_round() {
        let one = |key: &str| format!("<Contents><Key>{key}</Key></Contents>");
        let document = format!("<R><Name>b</Name>{}{}{}<X/></R>", one("a"), one("wal/1"), one("c"));
        assert_eq!(super::stale(&document, "wal/"), format!("<R><Name>b</Name>{}{}<X/></R>", one("c"), one("a")));
        assert_eq!(super::stale("<R/>", "wal/"), "<R/>");
    }
}
