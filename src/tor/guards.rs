//! Guards by their speed, as Torperf's experiments chose them: the slowest, the fastest, or any of those
//! that the consensus gives the flag Guard, by its bandwidths (no I/O).

use std::collections::BTreeSet;

use base64::Engine;
use base64::engine::general_purpose::STANDARD_NO_PAD;

use crate::config::{GuardChoice, GuardSet};

/// A relay that may be a guard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// 40 upper-case hexadecimal digits.
    pub fingerprint: String,
    /// The consensus weight, `Bandwidth=` of the `w` line.
    pub bandwidth: u64,
}

/// The running guards of a consensus, as `GETINFO ns/all` gives it (dir-spec, network status entries).
/// What has no bandwidth, or one of 0, is none: no client would choose it.
pub fn candidates(consensus: &str) -> Vec<Candidate> {
    let mut candidates = Vec::new();
    let mut relay: Option<(String, bool)> = None;
    for line in consensus.lines() {
        let (keyword, rest) = line.split_once(' ').unwrap_or((line, ""));
        match keyword {
            "r" => relay = rest.split(' ').nth(1).and_then(fingerprint).map(|fingerprint| (fingerprint, false)),
            "s" => {
                if let Some((_, guard)) = &mut relay {
                    let has = |flag: &str| rest.split(' ').any(|word| word == flag);
                    *guard = has("Guard") && has("Running") && has("Valid");
                }
            }
            "w" => {
                let bandwidth = rest.split(' ').find_map(|word| word.strip_prefix("Bandwidth=")?.parse().ok());
                if let (Some((fingerprint, true)), Some(bandwidth @ 1..)) = (relay.take(), bandwidth) {
                    candidates.push(Candidate { fingerprint, bandwidth });
                }
            }
            _ => {}
        }
    }
    candidates
}

/// The guards to use, at most as many as asked for. Of a random set, those of `present` that are still there
/// stay, so that it changes only as it must.
pub fn choose(mut candidates: Vec<Candidate>, set: &GuardSet, present: &BTreeSet<String>) -> BTreeSet<String> {
    // Of equal bandwidths the order is that of the fingerprints, the same each time.
    candidates.sort_by(|a, b| (a.bandwidth, &a.fingerprint).cmp(&(b.bandwidth, &b.fingerprint)));
    match set.choice {
        GuardChoice::Slowest => {}
        GuardChoice::Fastest => candidates.reverse(),
        GuardChoice::Random => {
            use rand::seq::SliceRandom;
            candidates.shuffle(&mut rand::rng());
            candidates.sort_by_key(|candidate| !present.contains(&candidate.fingerprint));
        }
    }
    candidates.into_iter().take(set.count as usize).map(|candidate| candidate.fingerprint).collect()
}

/// An identity as the consensus writes it: 20 bytes in base64 without padding.
fn fingerprint(identity: &str) -> Option<String> {
    let bytes = STANDARD_NO_PAD.decode(identity).ok().filter(|bytes| bytes.len() == 20)?;
    Some(bytes.iter().map(|byte| format!("{byte:02X}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As tor 0.4.9 answered on a private network, with other bandwidths.
    const CONSENSUS: &str = "\
r relay3 eDj5zmyYvQyul3kG4jTYhCAk310 XnLPPMJyYStGRnCdm9IQp79dNnk 2038-01-01 00:00:00 127.77.0.4 5000 0
s Exit Guard HSDir Running Stable V2Dir Valid
w Bandwidth=0
r authority ebe9GYTfAi1I3dGLIlqCS95O8w0 PJC3MmPajZ2wNNogL3XrJSMYZ8k 2038-01-01 00:00:00 127.77.0.1 5000 7000
s Authority Exit Fast Guard HSDir Running Stable V2Dir Valid
w Bandwidth=14
r relay2 fkB85hVweGnutI1TgjsjXU1rAJQ FzLhZMN/6aqFfP8TxZjqpp9Jc60 2038-01-01 00:00:00 127.77.0.3 5000 0
s Exit Fast Guard HSDir Running Stable V2Dir Valid
w Bandwidth=12 Unmeasured=1
r relay4 g4FBVR1cGMaYUTSxTj40lABjQJg ooD4YTGu4wo+HmOVGzoauJdbKK0 2038-01-01 00:00:00 127.77.0.5 5000 0
s Exit Fast HSDir Running Stable V2Dir Valid
w Bandwidth=11
r relay5 kP4U4RD9m3Rm2t18XC8ptLmcpd8 QV0CdQbu7SkvUTJgGJrqqLDv5gI 2038-01-01 00:00:00 127.77.0.6 5000 0
s Exit Fast Guard HSDir Running Stable V2Dir Valid
w Bandwidth=900
r short kP4U 2038-01-01 00:00:00 127.77.0.6 5000 0
s Guard Running Valid
w Bandwidth=1
";
    const AUTHORITY: &str = "79B7BD1984DF022D48DDD18B225A824BDE4EF30D";
    const RELAY2: &str = "7E407CE615707869EEB48D53823B235D4D6B0094";
    const RELAY5: &str = "90FE14E110FD9B7466DADD7C5C2F29B4B99CA5DF";

    fn chosen(choice: GuardChoice, count: u32, present: &[&str]) -> Vec<String> {
        let present = present.iter().map(|text| (*text).to_owned()).collect();
        choose(candidates(CONSENSUS), &GuardSet { choice, count }, &present).into_iter().collect()
    }

    #[test]
    fn running_guards_with_a_bandwidth_are_candidates() {
        let found: Vec<_> = candidates(CONSENSUS).into_iter().map(|c| (c.fingerprint, c.bandwidth)).collect();
        let expected = [(AUTHORITY, 14), (RELAY2, 12), (RELAY5, 900)];
        assert_eq!(found, expected.map(|(fingerprint, bandwidth)| (fingerprint.to_owned(), bandwidth)));
        assert_eq!(candidates("nonsense\nr\ns\nw\nr x\nw Bandwidth=1"), []);
    }

    #[test]
    fn sets_are_chosen_by_bandwidth() {
        assert_eq!(chosen(GuardChoice::Slowest, 1, &[]), [RELAY2]);
        assert_eq!(chosen(GuardChoice::Slowest, 2, &[]), [AUTHORITY, RELAY2]);
        assert_eq!(chosen(GuardChoice::Fastest, 1, &[]), [RELAY5]);
        assert_eq!(chosen(GuardChoice::Fastest, 9, &[]), [AUTHORITY, RELAY2, RELAY5]);
    }

    #[test]
    fn a_random_set_changes_only_as_it_must() {
        for _ in 0..50 {
            assert_eq!(chosen(GuardChoice::Random, 1, &[RELAY2, "gone"]), [RELAY2]);
        }
        let drawn: BTreeSet<_> = (0..200).flat_map(|_| chosen(GuardChoice::Random, 1, &[])).collect();
        assert_eq!(drawn.len(), 3, "each is drawn now and then");
    }
}
