//! What the small programs in place of `systemctl` and its like ask of the story, and what they are answered.

use std::path::Path;

use walkeep_tests::{process, user};

use super::Stage;

impl Stage {
    pub(super) fn serve(&mut self) {
        let asked = std::fs::read_dir(self.desk.join("asked")).unwrap().map(|entry| entry.unwrap().path());
        for question in asked.filter(|path| path.extension().is_some_and(|end| end == "ask")).collect::<Vec<_>>() {
            let words = std::fs::read_to_string(&question).unwrap();
            std::fs::remove_file(&question).unwrap();
            let words: Vec<_> = words.lines().collect();
            let (code, answer) = self.asked(&words);
            std::fs::write(question.with_extension("answer"), format!("{code}\n{answer}")).unwrap();
        }
    }

    fn asked(&mut self, words: &[&str]) -> (u8, String) {
        match words {
            ["systemctl", "daemon-reload"] => {}
            ["systemctl", "restart", "postgresql"] => self.cluster.restart(),
            ["systemctl", "start", "walkeep"] | ["systemctl", "enable", "--now", "walkeep"] => self.start_agent(),
            ["systemctl", "restart", "walkeep"] => {
                if self.agent.is_some() {
                    self.stop_agent();
                }
                self.start_agent();
            }
            ["systemctl", "disable", "--now", "walkeep"] => self.stop_agent(),
            ["systemctl", "status", "walkeep"] => {
                return if self.agent.is_some() { (0, "active (running)\n".into()) } else { (3, "inactive (dead)\n".into()) };
            }
            ["journalctl", "-u", "walkeep", "-n", count] => {
                let log = process::read_log(&self.walkeep.scratch().join("agent.log"));
                let lines: Vec<_> = log.lines().collect();
                return (0, lines[lines.len().saturating_sub(count.parse().unwrap())..].join("\n") + "\n");
            }
            ["aws", "s3", "sync", from, to] => self.synchronise(from, Path::new(to)),
            other => return (1, format!("nobody here knows {other:?}\n")),
        }
        (0, String::new())
    }

    /// What an S3 client brings: the objects below a prefix of the story's bucket.
    fn synchronise(&self, from: &str, to: &Path) {
        let (bucket, prefix) = from.strip_prefix("s3://").and_then(|rest| rest.split_once('/')).unwrap();
        let bucket = walkeep_tests::Bucket { name: bucket.to_owned() };
        let listed = bucket.list(&format!("{prefix}/"));
        assert!(!listed.is_empty(), "{from} is empty");
        for (key, _) in listed {
            let path = to.join(key.strip_prefix(prefix).unwrap().trim_start_matches('/'));
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, bucket.get(&key)).unwrap();
        }
        process::run(std::process::Command::new("chown").arg("-R").arg(&user::account().name).arg(self.desk.join("srv"))).unwrap();
    }
}

/// A program that hands its words to the story and says what that answers.
pub(super) fn asks(folder: &Path) -> String {
    format!(
        "#!/bin/sh\nat={}/$$\nmkfifo \"$at.answer\"\nprintf '%s\\n' \"${{0##*/}}\" \"$@\" > \"$at.new\"\nmv \"$at.new\" \"$at.ask\"\n\
         {{ read -r code; cat; }} < \"$at.answer\"\nrm \"$at.answer\"\nexit \"$code\"\n",
        folder.display()
    )
}
