//! What kustomize makes of the overlays, and questions to it.

use std::collections::BTreeSet;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;
use walkeep_tests::walkeep::run;
use walkeep_tests::{Scratch, cache};

/// A path below `packaging`.
pub fn packaging(name: &str) -> PathBuf {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../packaging")).join(name)
}

/// The folders that `kubectl apply -k` is for.
pub fn overlays() -> Vec<PathBuf> {
    let overlays = std::fs::read_dir(packaging("kubernetes/overlays")).unwrap().map(|entry| entry.unwrap().path());
    let mut all: Vec<_> = overlays.chain([packaging("kubernetes/base")]).collect();
    all.sort();
    all
}

pub fn list(value: &Value) -> &[Value] {
    value.as_array().map(Vec::as_slice).unwrap_or_default()
}

#[track_caller]
pub fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_else(|| panic!("{value} is no text"))
}

/// Whether all of a selector's labels are among these.
pub fn within(selector: &Value, labels: &Value) -> bool {
    selector.as_object().unwrap().iter().all(|(name, value)| labels[name] == *value)
}

/// kubectl, the API's schemas, and a reader of YAML.
pub struct Kit(PathBuf);

impl Kit {
    /// `None`, and a line that says so, where tests/setup.sh could not have it.
    pub fn get() -> Option<Self> {
        let versions = std::fs::read_dir(cache().join("kubernetes")).into_iter().flatten().flatten();
        let bin = versions.map(|version| version.path().join("bin")).find(|bin| bin.join("kubectl").exists());
        if bin.is_none() {
            eprintln!("SKIPPED Kubernetes: tests/setup.sh could not have kubectl and the API's schemas");
        }
        bin.map(Self)
    }

    #[track_caller]
    pub fn build(&self, overlay: &Path) -> String {
        let built = run(Command::new(self.0.join("kubectl")).arg("kustomize").arg(overlay));
        assert!(built.ok() && built.stderr.is_empty(), "{}: {}", overlay.display(), built.stderr);
        built.stdout
    }

    /// No field that the API does not know, none missing, none of another type. Of what operators add there is no schema.
    #[track_caller]
    pub fn validate(&self, manifests: &str, version: &str) {
        let scratch = Scratch::new();
        let file = scratch.write("built.yaml", manifests, 0o644);
        let said = run(Command::new(self.0.join("kubernetes-validate")).args(["--strict", "-k", version]).arg(&file));
        let passed = said.stdout.matches(" passed for resource ").count() + said.stderr.matches(" passed for resource ").count();
        let foreign = manifests.matches("\nkind: PodMonitor").count();
        assert!(said.ok() && passed + foreign == manifests.matches("\nkind: ").count(), "{said:?}");
    }

    #[track_caller]
    pub fn parse(&self, manifests: &str) -> Vec<Value> {
        let read = "import json, sys, yaml; json.dump(list(yaml.safe_load_all(sys.stdin)), sys.stdout)";
        let mut python = Command::new(self.0.join("python"));
        let mut child = python.args(["-c", read]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(manifests.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success());
        serde_json::from_slice(&output.stdout).unwrap()
    }
}

/// A file of the one ConfigMap whose generated name begins so and that has it.
#[track_caller]
pub fn config(objects: &[Value], prefix: &str, key: &str) -> String {
    let maps = objects.iter().filter(|object| object["kind"] == "ConfigMap" && text(&object["metadata"]["name"]).starts_with(prefix));
    let found: Vec<_> = maps.filter_map(|map| map["data"][key].as_str()).collect();
    assert_eq!(found.len(), 1, "{key}");
    found[0].to_owned()
}

/// Absolute paths in quotes, without those of comments.
pub fn quoted_paths(text: &str) -> Vec<String> {
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    let quoted = lines.flat_map(|line| line.split(['"', '\'']).skip(1).step_by(2));
    let words = quoted.flat_map(|value| value.split([' ', '=']));
    words.filter(|word| word.starts_with('/')).map(str::to_owned).collect()
}

/// A key's value in TOML.
#[track_caller]
pub fn value_of(toml: &str, key: &str) -> String {
    let line = toml.lines().find_map(|line| line.strip_prefix(&format!("{key} = \"")));
    line.unwrap_or_else(|| panic!("no {key} in {toml}")).trim_end_matches('"').to_owned()
}

/// Words as a shell splits them, with single quotes.
pub fn words(command: &str) -> Vec<String> {
    let pieces = command.split('\'').enumerate();
    let words = pieces.flat_map(|(at, piece)| match at % 2 {
        0 => piece.split_whitespace().map(str::to_owned).collect(),
        _ => vec![piece.to_owned()],
    });
    words.collect()
}

/// The command lines of Walkeep's in a document's blocks of shell, without the program.
pub fn commands_of(markdown: &str) -> Vec<Vec<String>> {
    let blocks = markdown.split("```sh\n").skip(1).filter_map(|rest| rest.split("\n```").next());
    let lines = blocks.flat_map(str::lines).map(|line| line.split("  #").next().unwrap().trim());
    let ours = lines.filter_map(|line| line.strip_prefix("walkeep ").or_else(|| line.split_once(" -- walkeep ").map(|(_, ours)| ours)));
    ours.map(words).collect()
}

/// What a StatefulSet or a CronJob makes.
pub struct Pod {
    pub labels: Value,
    pub text: String,
    spec: Value,
    claims: Vec<String>,
}

/// The database's comes first.
pub fn pods(objects: &[Value]) -> Vec<Pod> {
    let pod = |object: &Value, template: &Value| Pod {
        labels: template["metadata"]["labels"].clone(),
        text: template.to_string(),
        spec: template["spec"].clone(),
        claims: list(&object["spec"]["volumeClaimTemplates"]).iter().map(|claim| text(&claim["metadata"]["name"]).to_owned()).collect(),
    };
    let of = |kind: &'static str| objects.iter().filter(move |object| object["kind"] == kind);
    let databases = of("StatefulSet").map(|object| pod(object, &object["spec"]["template"]));
    databases.chain(of("CronJob").map(|object| pod(object, &object["spec"]["jobTemplate"]["spec"]["template"]))).collect()
}

impl Pod {
    fn containers(&self) -> impl Iterator<Item = &Value> {
        list(&self.spec["initContainers"]).iter().chain(list(&self.spec["containers"]))
    }

    #[track_caller]
    fn container(&self, name: &str) -> &Value {
        self.containers().find(|container| container["name"] == name).unwrap_or_else(|| panic!("no container {name}"))
    }

    pub fn images(&self) -> Vec<String> {
        let images: Vec<_> = self.containers().map(|container| text(&container["image"]).to_owned()).collect();
        let ours: BTreeSet<_> = images.iter().filter(|image| image.contains("walkeep")).collect();
        assert_eq!(ours.len(), 1, "{images:?}");
        images
    }

    pub fn ports(&self) -> BTreeSet<&str> {
        self.containers().flat_map(|container| list(&container["ports"])).map(|port| text(&port["name"])).collect()
    }

    pub fn mounts(&self, container: &str) -> Vec<String> {
        list(&self.container(container)["volumeMounts"]).iter().map(|mount| text(&mount["mountPath"]).to_owned()).collect()
    }

    /// The volume that a container has at a path.
    pub fn volume_at(&self, container: &str, path: &str) -> String {
        let mounts = list(&self.container(container)["volumeMounts"]);
        let mount = mounts.iter().find(|mount| mount["mountPath"] == path).unwrap_or_else(|| panic!("{container} has nothing at {path}"));
        format!("{} {}", mount["name"], mount["subPath"])
    }

    /// A variable of a container's; none or one.
    pub fn value(&self, container: &str, variable: &str) -> Vec<String> {
        let variables = list(&self.container(container)["env"]).iter();
        variables.filter(|pair| pair["name"] == variable).map(|pair| text(&pair["value"]).to_owned()).collect()
    }

    /// Walkeep's command lines, without the program.
    pub fn walkeeps(&self) -> Vec<Vec<String>> {
        let line = |container: &Value| {
            let texts = |key: &str| list(&container[key]).iter().map(|word| text(word).to_owned()).collect::<Vec<_>>();
            let (command, args) = (texts("command"), texts("args"));
            match command.first() {
                None if text(&container["image"]).contains("walkeep") => Some(args),
                Some(program) if program.ends_with("/walkeep") => Some([&command[1..], &args].concat()),
                _ => None,
            }
        };
        self.containers().filter_map(line).collect()
    }

    #[track_caller]
    pub fn check(&self, objects: &[Value], guide: &str) {
        let volumes: BTreeSet<&str> =
            list(&self.spec["volumes"]).iter().map(|volume| text(&volume["name"])).chain(self.claims.iter().map(String::as_str)).collect();
        let mounted: BTreeSet<&str> =
            self.containers().flat_map(|container| list(&container["volumeMounts"])).map(|mount| text(&mount["name"])).collect();
        assert_eq!(volumes, mounted, "each volume is mounted, and what is mounted is a volume");
        let map = |name: &str| objects.iter().find(|object| object["kind"] == "ConfigMap" && object["metadata"]["name"] == name);
        for volume in list(&self.spec["volumes"]) {
            if let Some(name) = volume["configMap"]["name"].as_str() {
                assert!(map(name).is_some(), "no ConfigMap {name}");
            }
        }
        let whole = &self.spec["securityContext"];
        assert!(
            whole["runAsNonRoot"] == true && whole["runAsUser"] == 999 && whole["seccompProfile"]["type"] == "RuntimeDefault",
            "{whole}"
        );
        for container in self.containers() {
            let context = &container["securityContext"];
            assert!(context["allowPrivilegeEscalation"] == false && context["readOnlyRootFilesystem"] == true, "{container}");
            assert_eq!(context["capabilities"], serde_json::json!({"drop": ["ALL"]}), "{container}");
            assert!(
                container["resources"]["requests"]["memory"].is_string() && container["resources"]["limits"]["memory"].is_string(),
                "{container}"
            );
            for variable in list(&container["env"]) {
                let from = &variable["valueFrom"];
                if let Some(key) = from["configMapKeyRef"]["key"].as_str() {
                    let name = text(&from["configMapKeyRef"]["name"]);
                    assert!(map(name).is_some_and(|map| map["data"][key].is_string()), "no {key} in ConfigMap {name}");
                }
                if let Some(key) = from["secretKeyRef"]["key"].as_str() {
                    // Made by hand: the guide says how.
                    let name = text(&from["secretKeyRef"]["name"]);
                    let made = guide.lines().any(|line| {
                        line.contains(&format!("create secret generic {name} "))
                            && (line.contains(&format!("-literal={key}=")) || line.contains(&format!("-file={key}=")))
                    });
                    assert!(made, "nobody makes {key} of the Secret {name}");
                }
            }
            for probe in ["livenessProbe", "readinessProbe", "startupProbe"] {
                let get = &container[probe]["httpGet"];
                if let Some(port) = get["port"].as_str() {
                    assert!(list(&container["ports"]).iter().any(|named| named["name"] == port), "{container}");
                    assert!(["/healthz", "/readyz"].contains(&text(&get["path"])), "{get}");
                }
            }
        }
    }
}
