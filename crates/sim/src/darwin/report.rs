//! A year told: a summary, a CSV with a line for each agent, and one HTML file that needs nothing else.

use super::demand::Trade;
use super::life::{Cause, Record, SEED, WINDOW_DAYS};
use super::{Setting, Town};
use std::fmt::Write;

/// Agents that have something in common.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    pub name: String,
    pub born: u64,
    pub alive: u64,
    /// Of those who died; 0 when nobody did.
    pub lived_days_median: u64,
    /// (income - rent) / income; `None` when nobody earned. Per mille.
    pub margin_permille_median: Option<i64>,
}

/// Everything that the page shows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Summary {
    pub setting: Setting,
    pub all: Group,
    /// Most frequent first, with how long they lived.
    pub causes: Vec<(Cause, Group)>,
    pub by_skill: Vec<Group>,
    pub by_rent: Vec<Group>,
    pub by_trade: Vec<Group>,
    /// By day, all towns together.
    pub alive: Vec<u64>,
    /// By day, mean of the towns' medians, micro-USDC a day.
    pub rent_day: Vec<u64>,
    /// By 30 days.
    pub deaths: Vec<u64>,
    pub moves: u64,
    pub takeovers: u64,
    pub rescues: u64,
    /// Of all agents' income, what the best tenth earned, percent.
    pub best_tenth_earned_pct: u64,
}

fn count<T>(of: &[T]) -> u64 {
    u64::try_from(of.len()).expect("a count")
}

/// Of the dead until the wind-down, of the living until the end.
pub fn lived_days(record: &Record, setting: &Setting) -> u64 {
    record.died_day.unwrap_or(setting.days) - record.born_day
}

/// Per mille of the income.
pub fn margin_permille(record: &Record) -> Option<i64> {
    let signed = |sum: u128| i64::try_from(sum).expect("fits");
    (record.earned != 0).then(|| (signed(record.earned) - signed(record.rent)) * 1_000 / signed(record.earned))
}

fn rent_a_day(record: &Record, setting: &Setting) -> u128 {
    record.rent / u128::from(lived_days(record, setting).max(1))
}

fn median<T: Ord + Copy>(mut values: Vec<T>) -> Option<T> {
    values.sort_unstable();
    values.get(values.len() / 2).copied()
}

fn group(name: impl Into<String>, records: &[&Record], setting: &Setting) -> Group {
    let dead = records.iter().filter(|record| record.died_day.is_some());
    Group {
        name: name.into(),
        born: count(records),
        alive: count(records) - u64::try_from(dead.clone().count()).expect("a count"),
        lived_days_median: median(dead.map(|record| lived_days(record, setting)).collect()).unwrap_or(0),
        margin_permille_median: median(records.iter().filter_map(|record| margin_permille(record)).collect()),
    }
}

/// As many in each part as can be, in this order.
fn parts<K: Ord>(records: &[&Record], parts: usize, key: impl Fn(&Record) -> K) -> Vec<Vec<Record>> {
    let mut sorted: Vec<&Record> = records.to_vec();
    sorted.sort_by_key(|record| key(record));
    let edge = |part: usize| sorted.len() * part / parts;
    (0..parts).map(|part| sorted[edge(part)..edge(part + 1)].iter().map(|r| (*r).clone()).collect()).collect()
}

impl Summary {
    pub fn new(setting: Setting, towns: &[Town]) -> Self {
        let records: Vec<&Record> = towns.iter().flat_map(|town| &town.records).collect();
        let of = |name: String, some: &[&Record]| group(name, some, &setting);
        let mut causes: Vec<(Cause, Group)> = Cause::ALL
            .into_iter()
            .map(|cause| {
                let some: Vec<&Record> = records.iter().copied().filter(|r| r.cause == Some(cause)).collect();
                (cause, of(cause.name().to_owned(), &some))
            })
            .collect();
        causes.sort_by_key(|(cause, group)| (u64::MAX - group.born, *cause));
        let named = |parts: Vec<Vec<Record>>, name: &dyn Fn(&Record) -> String| {
            parts
                .iter()
                .filter(|part| !part.is_empty())
                .map(|part| {
                    let some: Vec<&Record> = part.iter().collect();
                    of(format!("{} to {}", name(some[0]), name(some[some.len() - 1])), &some)
                })
                .collect()
        };
        let by_skill = named(parts(&records, 10, |r| r.skill), &|r| tenths(r.skill / 100));
        let by_rent = named(parts(&records, 5, |r| rent_a_day(r, &setting)), &|r| dollars(rent_a_day(r, &setting)));
        let by_trade = Trade::ALL
            .into_iter()
            .map(|trade| {
                let some: Vec<&Record> = records.iter().copied().filter(|r| r.trade == trade).collect();
                of(trade.name().to_owned(), &some)
            })
            .collect();
        let days = usize::try_from(setting.days).expect("days");
        let sum = |of: &dyn Fn(&Town) -> &[u64]| -> Vec<u64> {
            (0..days).map(|day| towns.iter().map(|town| of(town)[day]).sum()).collect()
        };
        let mut deaths = vec![0; days.div_ceil(30)];
        for died in records.iter().filter_map(|record| record.died_day) {
            deaths[usize::try_from(died / 30).expect("days")] += 1;
        }
        let mut earned: Vec<u128> = records.iter().map(|record| record.earned).collect();
        earned.sort_unstable();
        let best: u128 = earned.iter().rev().take(earned.len().div_ceil(10)).sum();
        let total = |of: fn(&Record) -> u32| records.iter().map(|record| u64::from(of(record))).sum();
        Self {
            setting,
            all: of("all".to_owned(), &records),
            causes,
            by_skill,
            by_rent,
            by_trade,
            alive: sum(&|town| &town.alive),
            rent_day: sum(&|town| &town.rent_day).into_iter().map(|sum| sum / count(towns).max(1)).collect(),
            deaths,
            moves: total(|record| record.moves),
            takeovers: total(|record| record.takeovers),
            rescues: total(|record| record.rescues),
            best_tenth_earned_pct: u64::try_from(best * 100 / earned.iter().sum::<u128>().max(1)).expect("percent"),
        }
    }

    /// For a terminal.
    pub fn text(&self) -> String {
        let (all, mut text) = (&self.all, String::new());
        let Setting { agents, days, seed } = self.setting;
        let pct = all.alive * 100 / all.born.max(1);
        writeln!(text, "{agents} agents, {days} days, seed {seed}: {} alive at the end ({pct} %)", all.alive)
            .expect("text");
        for (cause, group) in self.causes.iter().filter(|(_, group)| group.born != 0) {
            let (n, lived) = (group.born, group.lived_days_median);
            writeln!(text, "{n:>7}  {} (half of them within {lived} days)", cause.name()).expect("text");
        }
        let (moves, takeovers, rescues) = (self.moves, self.takeovers, self.rescues);
        write!(text, "{moves} moves, {takeovers} takeovers, {rescues} rescues").expect("text");
        text
    }
}

/// A line for each agent.
pub fn csv(setting: &Setting, towns: &[Town]) -> String {
    let mut text = String::from(
        "town,agent,trade,skill_permille,born_day,died_day,lived_days,cause,earned_uusdc,rent_uusdc,left_uusdc,\
         margin_permille,rent_a_day_uusdc,calls,completion_tokens,unsold_days,moves,takeovers,rescues,repricings,\
         days_fed,days_under_7,days_under_3,days_frugal,days_final\n",
    );
    for (number, town) in towns.iter().enumerate() {
        for (agent, r) in town.records.iter().enumerate() {
            let or_empty = |value: Option<String>| value.unwrap_or_default();
            let (died, margin) =
                (or_empty(r.died_day.map(|d| d.to_string())), or_empty(margin_permille(r).map(|m| m.to_string())));
            let cause = r.cause.map_or("", Cause::name);
            let [fed, seven, three, frugal, last] = r.level_days;
            let (lived, a_day) = (lived_days(r, setting), rent_a_day(r, setting));
            let trade = r.trade.name();
            writeln!(
                text,
                "{number},{agent},{trade},{},{},{died},{lived},\"{cause}\",{},{},{},{margin},{a_day},{},{},{},{},{},{},{},{fed},{seven},{three},{frugal},{last}",
                r.skill, r.born_day, r.earned, r.rent, r.left, r.calls, r.tokens, r.unsold_days, r.moves, r.takeovers, r.rescues, r.repricings,
            )
            .expect("text");
        }
    }
    text
}

/// What is assumed, whence, as the page lists it.
pub const ASSUMPTIONS: [(&str, &str); 13] = [
    ("born with 100 USDC; prepays two days; leases of 30 days; margin 20 %", "DESIGN; the project's manifests"),
    (
        "half of the hosts ask less than 0.90 USDC a day; two of three between 0.66 and 1.23",
        "27 USDC a month for a small machine; the spread is a guess, unmeasured",
    ),
    (
        "a host makes about 100 completion tokens a second, two of three between 66 and 152",
        "docs/benchmarks.md (56 to 120 a core-second); the spread is a guess",
    ),
    ("a host leaves for good, without a word, on 3 of 1,000 days", "a guess, unmeasured"),
    (
        "hosts look at their price every two weeks and move it by at most 8 %, up when fuller than 80 %, down when emptier than 50 %",
        "a guess, unmeasured",
    ),
    (
        "a call has 500 prompt and 250 completion tokens; by night so little comes that 60 % of a host's day can be sold",
        "a guess, unmeasured",
    ),
    (
        "7,000 calls a day and agent at 0.00033 USDC, averaged over all: about two median hosts' rent",
        "a guess, unmeasured, and the one that matters most",
    ),
    (
        "1 % dearer: 1.11 % fewer calls",
        "measured between hosts of one open model on OpenRouter: \"The Emerging Market for Intelligence\", National Bureau of Economic Research, 2025",
    ),
    (
        "two of three agents have between half and twice the median's customers",
        "a guess; app stores are more unequal (C. Perry, \"The Shape of the App Store\", 2015)",
    ),
    ("half of the customers could as well go elsewhere", "a guess, unmeasured"),
    (
        "an agent is known after three weeks",
        "new models on OpenRouter settle \"within weeks\" (A. Fradkin, arXiv 2504.15440, 2025)",
    ),
    (
        "trades: steady, weekly, growing (doubles), fading (halves every four months), bursts (a week of twelve times the calls, every eleven weeks)",
        "a guess; that real traffic is burstier than even arrivals: BurstGPT, arXiv 2401.17644",
    ),
    (
        "stewards rescue an agent without a host in one to three days; 2 % of rented hosts never get ready",
        "a guess, unmeasured",
    ),
];

/// The page.
pub fn html(summary: &Summary) -> String {
    let Setting { agents, days, seed } = summary.setting;
    let all = &summary.all;
    let mut body = String::new();
    let pct = |part: u64, whole: u64| format!("{} %", tenths(part * 1_000 / whole.max(1)));
    let facts = [
        (pct(all.alive, all.born), "alive at the end"),
        (format!("{} days", all.lived_days_median), "half of the dead lived less"),
        (all.margin_permille_median.map_or("none".to_owned(), signed_pct), "median margin: (income - rent) / income"),
        (format!("{} %", summary.best_tenth_earned_pct), "of all income went to the best tenth"),
        (summary.moves.to_string(), "moves between hosts"),
        (format!("{} / {}", summary.takeovers, summary.rescues), "takeovers / rescues"),
    ];
    body += "<div class=facts>";
    for (value, what) in facts {
        write!(body, "<div><b>{value}</b><span>{what}</span></div>").expect("text");
    }
    body += "</div>\n";
    body += &section(
        "Alive, by day",
        &line(&summary.alive, &|n| n.to_string()),
        "Births are spread over the first four weeks.",
    );
    let causes = summary.causes.iter().map(|(_, group)| {
        let lived = format!("{}, half within {} days", group.born, group.lived_days_median);
        (group.name.clone(), group.born, lived)
    });
    body += &section(
        "Why the others wound down",
        &bars(&causes.collect::<Vec<_>>()),
        &format!(
            "An agent's best {WINDOW_DAYS} days are compared with its last. If not even the best paid the rent, it never earned it; \
             else the factor that fell most is the cause: days sold, rent, its trade's demand, its share of it."
        ),
    );
    let deaths = (0..)
        .zip(&summary.deaths)
        .map(|(month, n)| (format!("days {} to {}", month * 30, month * 30 + 29), *n, n.to_string()));
    body += &section("Wind-downs, by month", &bars(&deaths.collect::<Vec<_>>()), "");
    for (title, groups, note) in [
        (
            "Alive, by skill",
            &summary.by_skill,
            "Tenths of all agents. Skill: an agent's customers at equal price, as a multiple of the median's.",
        ),
        (
            "Alive, by rent",
            &summary.by_rent,
            "Fifths of all agents, by the rent of a day over the whole life, both hosts, in USDC. Who dropped the standby in hunger pays less, so the cheapest fifth is not the best one.",
        ),
        ("Alive, by demand", &summary.by_trade, "The shape of its trade's demand over the year."),
    ] {
        let rows: Vec<_> = groups
            .iter()
            .map(|group| {
                let permille = group.alive * 1_000 / group.born.max(1);
                let margin = group.margin_permille_median.map_or("none".to_owned(), signed_pct);
                (group.name.clone(), permille, format!("{} % alive, margin {margin}", tenths(permille)))
            })
            .collect();
        body += &section(title, &bars(&rows), note);
    }
    body += &section(
        "Rent of a host, by day",
        &line(&summary.rent_day, &|n| dollars(n.into())),
        "USDC a day; mean of the towns' medians.",
    );
    body += "<h2>What is assumed</h2><table><tr><th>assumption</th><th>source</th></tr>\n";
    for (what, source) in ASSUMPTIONS {
        writeln!(body, "<tr><td>{what}</td><td>{source}</td></tr>").expect("text");
    }
    body += "</table>\n";
    format!(
        "<!doctype html>\n<html lang=en><meta charset=utf-8><meta name=viewport content=\"width=device-width\">\n\
         <title>{agents} agents, {days} days</title>\n<style>{STYLE}</style>\n<h1>{agents} agents, {days} days</h1>\n\
         <p>Simulated: traffic is added up by the day, contracts are their Rust model, and the price moves one step a day. \
         Each agent begins with {} USDC and decides with the code that real agents run. Money is exact; the world is \
         assumed, as listed below. The same again: <code>vivarium sim darwin --agents {agents} --days {days} --seed {seed}</code></p>\n{body}</html>\n",
        SEED / economy::USDC,
    )
}

const STYLE: &str = "body{font:16px/1.5 system-ui,sans-serif;max-width:52rem;margin:2rem auto;padding:0 1rem;color:#1d2b24;background:#fbfcfa}\
h1{font-size:1.7rem}h2{font-size:1.15rem;margin:2.2rem 0 .3rem}p{color:#52635a;margin:.3rem 0}svg{width:100%;height:auto;display:block}\
svg text{font:12px system-ui,sans-serif;fill:currentColor}.bar{fill:#3f8f6b}.line{fill:none;stroke:#3f8f6b;stroke-width:2}.grid{stroke:#8884;stroke-width:1}\
.facts{display:grid;grid-template-columns:repeat(auto-fit,minmax(11rem,1fr));gap:.8rem;margin:1.2rem 0}.facts div{border:1px solid #8884;border-radius:8px;padding:.7rem}\
.facts b{display:block;font-size:1.35rem}.facts span{font-size:.82rem;color:#52635a}table{border-collapse:collapse;font-size:.88rem}td,th{text-align:left;vertical-align:top;border-top:1px solid #8884;padding:.35rem .8rem .35rem 0}\
@media(prefers-color-scheme:dark){body{background:#131a16;color:#e3ebe6}p,.facts span{color:#9fb0a7}}";

fn section(title: &str, chart: &str, note: &str) -> String {
    let note = if note.is_empty() { String::new() } else { format!("<p>{note}</p>") };
    format!("<h2>{title}</h2>{note}{chart}\n")
}

/// (name, length, label).
fn bars(rows: &[(String, u64, String)]) -> String {
    let most = rows.iter().map(|(_, n, _)| *n).max().unwrap_or(0).max(1);
    let mut svg = format!("<svg viewBox=\"0 0 760 {}\" role=img>", rows.len() * 26 + 4);
    for (place, (name, n, label)) in rows.iter().enumerate() {
        let (y, width) = (place * 26 + 4, n * 320 / most);
        write!(
            svg,
            "<text x=230 y={} text-anchor=end>{name}</text><rect class=bar x=240 y={y} width={width} height=18 rx=3 />\
             <text x={} y={}>{label}</text>",
            y + 14,
            248 + width,
            y + 14
        )
        .expect("text");
    }
    svg + "</svg>"
}

/// One value a day.
fn line(values: &[u64], label: &dyn Fn(u64) -> String) -> String {
    let most = values.iter().copied().max().unwrap_or(0).max(1);
    let last = count(values).saturating_sub(1).max(1);
    let x = |day: u64| 60 + day * 680 / last;
    let y = |value: u64| 190 - value * 170 / most;
    let mut svg = String::from("<svg viewBox=\"0 0 760 220\" role=img>");
    for quarter in 0..=4 {
        let value = most * quarter / 4;
        write!(
            svg,
            "<path class=grid d=\"M60 {0}H740\"/><text x=52 y={1} text-anchor=end>{2}</text>",
            y(value),
            y(value) + 4,
            label(value)
        )
        .expect("text");
    }
    for day in (0..=last).step_by(usize::try_from((last / 6).max(1)).expect("days")) {
        write!(svg, "<text x={} y=210 text-anchor=middle>{day}</text>", x(day)).expect("text");
    }
    svg += "<path class=line d=\"";
    for (day, value) in (0..).zip(values) {
        write!(svg, "{}{} {}", if day == 0 { 'M' } else { 'L' }, x(day), y(*value)).expect("text");
    }
    svg + "\"/></svg>"
}

/// `12.3` of 123.
fn tenths(n: u64) -> String {
    format!("{}.{}", n / 10, n % 10)
}

fn signed_pct(permille: i64) -> String {
    let sign = if permille < 0 { "-" } else { "" };
    format!("{sign}{} %", tenths(permille.unsigned_abs()))
}

/// `0.90` of 900,000 micro-USDC.
fn dollars(uusdc: u128) -> String {
    format!("{}.{:02}", uusdc / 1_000_000, uusdc % 1_000_000 / 10_000)
}
