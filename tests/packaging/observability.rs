//! The dashboard and the alerts: they use only metrics that exist, and each alert fires when it
//! should.

use std::{collections::BTreeSet, fs, path::Path, process::Command, sync::LazyLock};

use portcullis::outcome::Reason;
use serde_json::{Value, json};

use crate::{
    installed, output_text,
    promql::{self, Selector},
    read, root, run_ok,
};

const ALERTS: &str = "packaging/observability/alerts.yml";
const ALERT_TESTS: &str = "packaging/observability/alerts.test.yml";
const DASHBOARD: &str = "packaging/observability/dashboard.json";

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Counter,
    Gauge,
    Histogram,
}
use Kind::{Counter, Gauge, Histogram};

/// A metric family that a gateway exports.
struct Family {
    name: String,
    kind: Kind,
    labels: Vec<String>,
}

/// What docs/metrics.md lists; another test compares that with what a gateway exports.
static METRICS: LazyLock<Vec<Family>> = LazyLock::new(|| {
    let text = read("docs/metrics.md");
    let words =
        |cell: &str| -> Vec<String> { cell.split('`').skip(1).step_by(2).map(str::to_owned).collect() };
    let rows = text.lines().filter(|line| line.starts_with("| `"));
    let families = rows.map(|row| {
        let cells: Vec<&str> = row.split(" | ").collect();
        let kind = match cells[1] {
            "counter" => Counter,
            "gauge" | "info" => Gauge,
            "histogram" => Histogram,
            other => panic!("{row}: {other} is no kind of metric"),
        };
        Family { name: words(cells[0]).remove(0), kind, labels: words(cells[2]) }
    });
    let families: Vec<Family> = families.collect();
    assert!(families.len() > 20, "docs/metrics.md lists only {} metrics", families.len());
    families
});

/// The metric that Prometheus itself adds about its targets.
const OF_PROMETHEUS: &str = "up";
/// The labels that Prometheus adds to every series.
const TARGET: &[&str] = &["job", "instance"];

/// The labels of a series; `None` if no gateway exports it.
fn labels(series: &str) -> Option<BTreeSet<&'static str>> {
    let target = TARGET.iter().copied();
    if series == OF_PROMETHEUS {
        return Some(target.collect());
    }
    METRICS.iter().find_map(|Family { name, kind, labels }| {
        let own = labels.iter().map(String::as_str).chain(target.clone());
        match (kind, series.strip_prefix(name.as_str())?) {
            (Counter | Gauge, "") | (Histogram, "_sum" | "_count") => Some(own.collect()),
            (Histogram, "_bucket") => Some(own.chain(["le"]).collect()),
            _ => None,
        }
    })
}

/// The defects of the names in an expression.
fn defects(expression: &str) -> Vec<String> {
    let names = promql::names(expression);
    let mut wrong = Vec::new();
    let mut known = BTreeSet::new();
    for Selector { name, matchers } in &names.selectors {
        let Some(labels) = labels(name) else {
            wrong.push(format!("no gateway exports {name}: {expression}"));
            continue;
        };
        for (label, value) in matchers {
            if !labels.contains(label.as_str()) {
                wrong.push(format!("{name} has no label {label}: {expression}"));
            }
            if label == "reason" {
                let unknown =
                    value.split('|').filter(|word| Reason::ALL.iter().all(|reason| reason.as_str() != *word));
                wrong.extend(unknown.map(|word| format!("{word} is no reason: {expression}")));
            }
        }
        known.extend(labels);
    }
    if names.selectors.is_empty() {
        wrong.push(format!("asks for nothing: {expression}"));
    }
    let nowhere = names.groupings.iter().filter(|label| !known.contains(label.as_str()));
    wrong.extend(nowhere.map(|label| format!("nothing here has a label {label}: {expression}")));
    wrong
}

#[test]
fn unknown_names_are_found() {
    for good in [
        "portcullis_ready == 0",
        "up{job=\"portcullis\"} == 0",
        "sum by (job, le) (rate(portcullis_backend_dial_seconds_bucket[5m]))",
        "sum by (reason) (portcullis_connections_ended_total{reason=~\"client_closed|client_gone\"})",
    ] {
        assert_eq!(defects(good), Vec::<String>::new());
    }
    for (bad, finding) in [
        ("portcullis_redy == 0", "no gateway exports portcullis_redy"),
        ("portcullis_backend_dial_seconds > 1", "no gateway exports"),
        ("portcullis_ready{route=\"vnc\"} == 0", "no label route"),
        ("sum by (listener) (portcullis_sessions)", "has a label listener"),
        ("portcullis_connections_ended_total{reason=\"gone\"}", "gone is no reason"),
        ("time() > 1", "asks for nothing"),
    ] {
        let wrong = defects(bad);
        assert!(wrong.len() == 1 && wrong[0].contains(finding), "{bad}: {wrong:?}");
    }
}

// The alerts.

/// The alerts' names and expressions, in their order.
fn alerts() -> Vec<(String, String)> {
    let text = read(ALERTS);
    let mut alerts = Vec::<(String, String)>::new();
    let mut inside = false;
    for line in text.lines() {
        if let Some(name) = line.strip_prefix("      - alert: ") {
            alerts.push((name.to_owned(), String::new()));
        } else if let Some(expression) = line.strip_prefix("        expr: ") {
            inside = expression == "|-";
            let last = &mut alerts.last_mut().expect("an alert before its expression").1;
            last.push_str(if inside { "" } else { expression });
        } else if inside && line.starts_with("          ") {
            let last = &mut alerts.last_mut().expect("an alert before its expression").1;
            last.push_str(line.trim());
            last.push(' ');
        } else {
            inside = false;
        }
    }
    assert_eq!(alerts.len(), text.matches("alert:").count(), "an alert was not read");
    assert!(alerts.len() > 10, "only these alerts were found: {alerts:?}");
    alerts
}

#[test]
fn alerts_use_only_exported_metrics() {
    let wrong: Vec<String> = alerts()
        .iter()
        .flat_map(|(name, expression)| {
            defects(expression).into_iter().map(move |wrong| format!("{name}: {wrong}"))
        })
        .collect();
    assert!(wrong.is_empty(), "\n{}\n", wrong.join("\n"));
}

#[test]
fn the_manual_lists_each_alert_by_its_severity() {
    let text = read(ALERTS);
    let manual = read("docs/operations.md");
    let mut listed = 0;
    for severity in ["critical", "warning", "info"] {
        let rules = text.split("      - alert: ").skip(1);
        let names: Vec<String> = rules
            .filter(|rule| rule.contains(&format!("\n          severity: {severity}\n")))
            .map(|rule| format!("`{}`", rule.lines().next().unwrap_or_default()))
            .collect();
        listed += names.len();
        let cell = format!("| {} |", names.join(", "));
        let row = manual.lines().find(|line| line.starts_with(&format!("| `{severity}` |")));
        assert!(row.is_some_and(|row| row.ends_with(&cell)), "{severity}: {row:?} should end with {cell}");
    }
    assert_eq!(listed, alerts().len(), "an alert has another severity");
}

#[test]
fn the_alert_tests_cover_every_alert_with_existing_series() {
    let text = read(ALERT_TESTS);
    // The first test is that of a healthy gateway; the others make alerts fire.
    let (healthy, firing) = text.split_once("  - name: a gateway that is down").expect("the second test");
    for (name, _) in alerts() {
        let fires = format!("alertname: {name}\n        exp_alerts:\n          - exp_labels:");
        assert!(firing.contains(&fires), "no test makes {name} fire");
        let silent = format!("alertname: {name}, exp_alerts: []");
        assert!(text.contains(&silent), "no test keeps {name} from firing");
    }
    assert!(
        healthy.matches("exp_alerts: []").count() >= alerts().len() - 1,
        "the healthy gateway is not asked enough"
    );
    let series: Vec<&str> = text
        .lines()
        .filter_map(|line| {
            line.trim().strip_prefix("- { series: '")?.split_once("'").map(|(series, _)| series)
        })
        .collect();
    assert!(series.len() > 50, "only these series were found: {series:?}");
    for series in series {
        let names = promql::names(series);
        let Selector { name, matchers } = &names.selectors[0];
        let given: BTreeSet<&str> = matchers.iter().map(|(label, _)| label.as_str()).collect();
        assert_eq!(labels(name).as_ref(), Some(&given), "no gateway exports {series}");
    }
}

#[test]
#[ignore = "needs promtool: tests/run --only packaging"]
fn promtool_accepts_the_alerts_and_each_fires_when_it_should() {
    let Some(promtool) = installed("promtool", "packaging") else { return };
    let checked = run_ok(Command::new(&promtool).args(["check", "rules", ALERTS]).current_dir(root()));
    assert!(checked.contains(&format!("SUCCESS: {} rules found", alerts().len())), "{checked}");
    run_ok(Command::new(&promtool).args(["test", "rules", ALERT_TESTS]).current_dir(root()));
    // A defect would have been reported.
    let directory = tempfile::tempdir().unwrap();
    let text = read(ALERTS).replace("portcullis_draining == 1", "portcullis_draining == 2");
    assert_ne!(text, read(ALERTS));
    fs::write(directory.path().join("alerts.yml"), text).unwrap();
    let tests = directory.path().join("alerts.test.yml");
    fs::write(&tests, read(ALERT_TESTS)).unwrap();
    let output = Command::new(&promtool).args(["test", "rules"]).arg(&tests).output().unwrap();
    assert!(
        !output.status.success() && output_text(&output).contains("PortcullisDraining"),
        "{}",
        output_text(&output)
    );
}

// The dashboard.

fn dashboard() -> Value {
    serde_json::from_str(&read(DASHBOARD)).expect("JSON")
}

fn panels(dashboard: &Value) -> &[Value] {
    let panels = dashboard["panels"].as_array().expect("panels");
    assert!(panels.len() > 10, "only {} panels", panels.len());
    panels
}

/// Every expression of the dashboard, and its panel.
fn expressions(dashboard: &Value) -> Vec<(String, String)> {
    let mut expressions = Vec::new();
    for panel in panels(dashboard).iter().filter(|panel| panel["type"] != "row") {
        let title = panel["title"].as_str().expect("a title");
        let targets = panel["targets"].as_array().unwrap_or_else(|| panic!("{title} has no query"));
        assert!(!targets.is_empty(), "{title} has no query");
        for target in targets {
            expressions.push((title.to_owned(), target["expr"].as_str().expect("an expression").to_owned()));
        }
    }
    for annotation in dashboard["annotations"]["list"].as_array().expect("annotations") {
        let name = annotation["name"].as_str().expect("a name").to_owned();
        expressions.push((name, annotation["expr"].as_str().expect("an expression").to_owned()));
    }
    expressions
}

#[test]
fn the_dashboard_uses_only_exported_metrics_and_all_of_them() {
    let dashboard = dashboard();
    let mut shown = BTreeSet::new();
    let mut wrong = Vec::new();
    for (title, expression) in expressions(&dashboard) {
        wrong.extend(defects(&expression).into_iter().map(|wrong| format!("{title}: {wrong}")));
        shown.extend(promql::names(&expression).selectors.into_iter().map(|selector| selector.name));
    }
    for variable in dashboard["templating"]["list"].as_array().unwrap() {
        let Some(query) = variable["query"]["query"].as_str() else { continue };
        let inner = query.strip_prefix("label_values(").and_then(|query| query.strip_suffix(')'));
        let (series, label) =
            inner.and_then(|inner| inner.rsplit_once(", ")).expect("label_values(series, label)");
        wrong.extend(defects(&format!("count by ({label}) ({series})")));
    }
    assert!(wrong.is_empty(), "\n{}\n", wrong.join("\n"));
    for Family { name, kind, .. } in METRICS.iter() {
        let series = if *kind == Histogram { format!("{name}_bucket") } else { name.clone() };
        assert!(shown.contains(&series), "{name} is nowhere on the dashboard");
    }
}

#[test]
fn the_dashboards_panels_are_distinct_and_do_not_overlap() {
    let dashboard = dashboard();
    let mut ids = BTreeSet::new();
    let mut taken = BTreeSet::new();
    for panel in panels(&dashboard) {
        let title = panel["title"].as_str().filter(|title| !title.is_empty()).expect("a title");
        assert!(ids.insert(panel["id"].as_u64().expect("an id")), "{title}: its id is not unique");
        let [x, y, w, h] = ["x", "y", "w", "h"].map(|key| panel["gridPos"][key].as_u64().expect("a place"));
        assert!(w > 0 && h > 0 && x + w <= 24, "{title} is wider than the page");
        for (column, line) in (x..x + w).flat_map(|column| (y..y + h).map(move |line| (column, line))) {
            assert!(taken.insert((column, line)), "{title} covers another panel");
        }
        if panel["type"] != "row" {
            let source = &panel["datasource"]["uid"];
            assert_eq!(source, "${datasource}", "{title}: another data source");
            assert!(panel["fieldConfig"]["defaults"]["unit"].is_string(), "{title} has no unit");
        }
    }
}

/// Every series that a gateway exports, as input for promtool. The values grow, so that rates are not zero.
fn everything() -> Vec<Value> {
    let values = |label: &str| match label {
        "reason" => vec!["client_closed", "rate_limited"],
        "direction" => vec!["in", "out"],
        "result" => vec!["ok", "failed"],
        "le" => vec!["0.1", "1", "+Inf"],
        "route" => vec!["vnc"],
        "backend" => vec!["tcp://127.0.0.1:5900"],
        "listener" => vec!["0.0.0.0:8443"],
        "version" => vec!["0.1.0"],
        "job" => vec!["portcullis"],
        "instance" => vec!["127.0.0.1:9101"],
        other => panic!("no value for the label {other}"),
    };
    let mut series = Vec::new();
    for Family { name, kind, .. } in METRICS.iter() {
        let name = if *kind == Histogram { format!("{name}_bucket") } else { name.clone() };
        let mut all = vec![String::new()];
        for label in labels(&name).expect("a series that a gateway exports") {
            let one = |values: &str, value| format!("{values}{label}=\"{value}\",");
            all = all
                .iter()
                .flat_map(|before| values(label).into_iter().map(move |value| one(before, value)))
                .collect();
        }
        series.extend(all.iter().map(|labels| {
            json!({ "series": format!("{name}{{{}}}", labels.trim_end_matches(',')), "values": "1+60x60" })
        }));
    }
    series
}

/// The output of promtool when each expression must have a value at a gateway that exports everything.
fn evaluate(promtool: &Path, expressions: &[(String, String)]) -> std::process::Output {
    let directory = tempfile::tempdir().expect("a directory");
    let mut rules = Vec::new();
    let mut tests = Vec::new();
    for (number, (_, expression)) in expressions.iter().enumerate() {
        let mut plain = expression.replace("$__rate_interval", "5m");
        for variable in ["$job", "$instance", "$route"] {
            plain = plain.replace(variable, ".*");
        }
        assert!(!plain.contains('$'), "an unknown variable: {plain}");
        let name = format!("panel{number}");
        rules.push(json!({ "alert": name, "expr": format!("count({plain}) > 0") }));
        tests.push(json!({ "eval_time": "30m", "alertname": name, "exp_alerts": [{ "exp_labels": {} }] }));
    }
    // YAML takes JSON.
    let write =
        |name: &str, value: Value| fs::write(directory.path().join(name), value.to_string()).expect("a file");
    write("rules.yml", json!({ "groups": [{ "name": "dashboard", "rules": rules }] }));
    write(
        "test.yml",
        json!({
            "rule_files": ["rules.yml"],
            "evaluation_interval": "1m",
            "tests": [{ "interval": "1m", "input_series": everything(), "alert_rule_test": tests }],
        }),
    );
    Command::new(promtool)
        .args(["test", "rules"])
        .arg(directory.path().join("test.yml"))
        .output()
        .expect("the program starts")
}

#[test]
#[ignore = "needs promtool: tests/run --only packaging"]
fn every_panel_has_data() {
    let Some(promtool) = installed("promtool", "packaging") else { return };
    let expressions = expressions(&dashboard());
    let output = evaluate(&promtool, &expressions);
    assert!(output.status.success(), "{}\n{expressions:#?}", output_text(&output));
    // It would have said something.
    for wrong in ["sum(portcullis_sessions", "portcullis_sessions{route=\"nowhere\"}"] {
        let output = evaluate(&promtool, &[("wrong".to_owned(), wrong.to_owned())]);
        assert!(!output.status.success(), "{wrong} was not detected: {}", output_text(&output));
    }
}
