//! A question is answered block by block: a period each, or the hours of a day.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use rusqlite::Result;

use super::Refused;
use super::cache::{Cache, Key};
use super::empty;
use super::gather::{self, Gather};
use super::question::{Dimension, Question, Statistic};
use super::table::{Cell, Row, Table};
use crate::clock::UnixMicros;
use crate::measurement::Kind;
use crate::stats::Period;
use crate::stats::period::{date_text, day_of, start_of_day};
use crate::store::{Filter, Known, Mark, Reading, Series, Slots};

/// So many values are held at once, at most: some 40 MB.
const MOST_VALUES: u64 = 5_000_000;

/// So many rows an answer has at most.
const MOST_ROWS: usize = 100_000;

const DAY: i64 = 86_400_000_000;

/// Answers a question, as of `now`.
pub fn answer(
    reading: &Reading<'_>,
    cache: &Cache,
    question: &Question,
    now: UnixMicros,
) -> Result<std::result::Result<Table, Refused>> {
    let mut table = Table {
        statistic: question.statistic.path(),
        columns: gather::columns(question),
        rows: Vec::new(),
        note: None,
    };
    let window = Window::of(reading, question, now)?;
    for block in window.blocks(question) {
        match window.rows(reading, cache, question, &block)? {
            Ok(rows) => table.rows.extend(rows.iter().cloned()),
            Err(refused) => return Ok(Err(refused)),
        }
        if table.rows.len() > MOST_ROWS {
            return Ok(Err(Refused::TooManyRows(MOST_ROWS)));
        }
    }
    if table.rows.is_empty() {
        table.note = Some(empty::reason(reading, question)?);
    }
    Ok(Ok(table))
}

/// The series that a question is about, and by what they are grouped.
pub(super) struct Groups {
    pub known: Vec<Known>,
    numbers: HashMap<Series, usize>,
    /// The group of each series.
    pub group: Vec<usize>,
    /// The cells by which a group is named.
    pub names: Vec<Row>,
}

/// A span that is answered, and kept, at once.
#[derive(Clone, Debug)]
struct Block {
    from: UnixMicros,
    until: UnixMicros,
    /// When its period began; of several hours, the day.
    start: UnixMicros,
}

/// What there is of the time that a question is about.
struct Window {
    groups: Groups,
    since: UnixMicros,
    until: UnixMicros,
    /// By day.
    marks: BTreeMap<i64, Vec<Mark>>,
    /// By experiment and day.
    slots: BTreeMap<Arc<str>, BTreeMap<i64, Slots>>,
}

/// The slots of the periods of a block, by the moment at which they begin and the experiment.
pub(super) type BlockSlots = BTreeMap<(UnixMicros, Arc<str>), Slots>;

impl Window {
    fn of(reading: &Reading<'_>, question: &Question, now: UnixMicros) -> Result<Self> {
        let groups = Groups::of(reading.series(&question.filter)?, &question.group);
        let since = question.filter.since.unwrap_or(UnixMicros(i64::MIN));
        let mut until = question.filter.until.unwrap_or(UnixMicros(i64::MAX));
        if let Some(days) = i64::try_from(question.omit_last_days).ok().filter(|days| *days > 0) {
            until = until.min(start_of_day(day_of(now) + 1 - days));
        }
        let days = day_of(since)..=day_of(UnixMicros(until.0.saturating_sub(1)));
        let mut marks: BTreeMap<i64, Vec<Mark>> = BTreeMap::new();
        let mut slots = BTreeMap::new();
        for known in &groups.known {
            for mark in reading.marks(known.id, days.clone())? {
                marks.entry(mark.day).or_default().push(mark);
            }
            let experiment = &known.series.experiment;
            if known.own && !slots.contains_key(experiment) {
                slots.insert(Arc::clone(experiment), reading.slot_days(experiment, days.clone())?);
            }
        }
        Ok(Window { groups, since, until, marks, slots })
    }

    /// The blocks in which there is anything, the earliest first.
    fn blocks(&self, question: &Question) -> Vec<Block> {
        if self.since >= self.until {
            return Vec::new();
        }
        let Some(period) = question.period else {
            let nothing = self.marks.is_empty() && self.slots.values().all(BTreeMap::is_empty);
            let whole = Block { from: self.since, until: self.until, start: self.since };
            return if nothing { Vec::new() } else { vec![whole] };
        };
        let period = if period == Period::Hour { Period::Day } else { period };
        let days = self.marks.keys().chain(self.slots.values().flat_map(BTreeMap::keys));
        let starts = days.map(|day| (period.start_of(start_of_day(*day)), period.next(start_of_day(*day))));
        let starts: BTreeMap<UnixMicros, UnixMicros> = starts.collect();
        let block = |(start, next): (UnixMicros, UnixMicros)| Block {
            from: start.max(self.since),
            until: next.min(self.until),
            start,
        };
        starts.into_iter().map(block).filter(|block| block.from < block.until).collect()
    }

    fn rows(
        &self,
        reading: &Reading<'_>,
        cache: &Cache,
        question: &Question,
        block: &Block,
    ) -> Result<std::result::Result<Arc<Vec<Row>>, Refused>> {
        let days = day_of(block.from)..=day_of(UnixMicros(block.until.0.saturating_sub(1)));
        let marks: Vec<Mark> = self.marks.range(days.clone()).flat_map(|(_, marks)| marks.iter().copied()).collect();
        let slots = self.block_slots(reading, question, block)?;
        let mut hasher = DefaultHasher::new();
        (&marks, slots.iter().collect::<Vec<_>>()).hash(&mut hasher);
        // What the slots of a day's hours are changes with those of the day.
        for by_day in self.slots.values() {
            by_day.range(days.clone()).for_each(|day| day.hash(&mut hasher));
        }
        let mark = hasher.finish();
        let windowless =
            Question { filter: Filter { since: None, until: None, ..question.filter.clone() }, ..question.clone() };
        let key: Key = (format!("{windowless:?}").into(), block.from.0, block.until.0);
        if let Some(rows) = cache.get(&key, mark) {
            return Ok(Ok(rows));
        }
        let rows = match question.statistic {
            Statistic::Paired => self.paired(reading, question, block, &slots)?,
            _ => self.gathered(reading, question, block, &marks, &slots)?,
        };
        Ok(rows.map(|rows| {
            let rows = Arc::new(rows);
            // A slot's runs may begin on the day after it, which the mark of its own does not tell.
            if question.statistic != Statistic::Paired {
                cache.put(key, mark, Arc::clone(&rows));
            }
            rows
        }))
    }

    fn gathered(
        &self,
        reading: &Reading<'_>,
        question: &Question,
        block: &Block,
        marks: &[Mark],
        slots: &BlockSlots,
    ) -> Result<std::result::Result<Vec<Row>, Refused>> {
        let wanted = gather::wanted(question);
        let mut gathered: Box<dyn Gather> = gather::empty(question, &self.groups);
        let (mut found, mut values) = (HashMap::new(), 0u64);
        let mut last: Option<(Series, usize)> = None;
        let mut days: Vec<i64> = marks.iter().map(|mark| mark.day).collect();
        days.dedup();
        for day in days {
            let filter = Filter {
                since: Some(start_of_day(day)),
                until: Some(start_of_day(day + 1)),
                ..question.filter.clone()
            };
            reading.samples(&filter, wanted, |import, sample| {
                let number = match &last {
                    Some((series, number)) if series.has(&sample) => *number,
                    _ => {
                        let series = Series::of(&sample);
                        // A series that is new since the question began is left out of this answer.
                        let Some(number) = self.groups.numbers.get(&series) else { return };
                        last = Some((series, *number));
                        *number
                    }
                };
                *found.entry((day, self.groups.known[number].id, import)).or_insert(0u64) += 1;
                let within = block.from <= sample.start && sample.start < block.until;
                if within && values <= MOST_VALUES {
                    values += gathered.add(block.period_of(question, sample.start), number, &sample);
                }
            })?;
            if values > MOST_VALUES {
                return Ok(Err(Refused::TooManyValues(MOST_VALUES)));
            }
        }
        let exact =
            marks.iter().all(|mark| found.get(&(mark.day, mark.series, mark.import)).copied() >= Some(mark.runs));
        // A day's roll-up does not tell of its hours: of these there is what is left.
        let tells = question.period != Some(Period::Hour);
        if !exact
            && tells
            && let Some(mut rolled) = gather::empty_of_rollups(question, &self.groups)
        {
            for mark in marks {
                let number = self.groups.known.iter().position(|known| known.id == mark.series);
                if let (Some(number), Some(rollup)) = (number, reading.rollup(mark)?) {
                    rolled.add_rollup(block.period_of(question, start_of_day(mark.day)), number, &rollup);
                }
            }
            gathered = rolled;
        }
        let context = Context { question, groups: &self.groups, slots, exact };
        Ok(Ok(gathered.finish(&context)))
    }

    fn paired(
        &self,
        reading: &Reading<'_>,
        question: &Question,
        block: &Block,
        slots: &BlockSlots,
    ) -> Result<std::result::Result<Vec<Row>, Refused>> {
        let Some(experiment) = &question.filter.experiment else { return Ok(Ok(Vec::new())) };
        let pairs = reading.pairs(experiment, block.from, block.until, MOST_VALUES as usize / 10)?;
        if pairs.cut.is_some() {
            return Ok(Err(Refused::TooManyValues(MOST_VALUES / 10)));
        }
        let context = Context { question, groups: &self.groups, slots, exact: true };
        Ok(Ok(gather::paired(&context, &pairs.rows, |planned| block.period_of(question, planned))))
    }

    fn block_slots(&self, reading: &Reading<'_>, question: &Question, block: &Block) -> Result<BlockSlots> {
        let mut found = BlockSlots::new();
        let whole_days = |at: UnixMicros| at.0 == i64::MIN || at.0 == i64::MAX || at.0.rem_euclid(DAY) == 0;
        for (experiment, by_day) in &self.slots {
            if question.period != Some(Period::Hour) && whole_days(block.from) && whole_days(block.until) {
                let days = day_of(block.from)..=day_of(UnixMicros(block.until.0.saturating_sub(1)));
                for slots in by_day.range(days).map(|(_, slots)| *slots) {
                    found.entry((block.start, Arc::clone(experiment))).or_default().add(slots);
                }
                continue;
            }
            let period = |at: UnixMicros| match question.period {
                Some(Period::Hour) => (Period::Hour.start_of(at), Period::Hour.next(at)),
                _ => (block.start, UnixMicros(i64::MAX)),
            };
            for (start, slots) in reading.slots(experiment, block.from, block.until, period)? {
                found.insert((start, Arc::clone(experiment)), slots);
            }
        }
        Ok(found)
    }
}

impl Block {
    /// When the period began in which this moment lies.
    fn period_of(&self, question: &Question, at: UnixMicros) -> UnixMicros {
        if question.period == Some(Period::Hour) { Period::Hour.start_of(at) } else { self.start }
    }
}

impl Groups {
    fn of(known: Vec<Known>, dimensions: &[Dimension]) -> Self {
        let mut names: Vec<Row> = Vec::new();
        let mut group = Vec::with_capacity(known.len());
        let mut by_name: HashMap<String, usize> = HashMap::new();
        for known in &known {
            let name: Row = dimensions.iter().map(|dimension| cell_of(&known.series, *dimension)).collect();
            let number = *by_name.entry(format!("{name:?}")).or_insert(names.len());
            if number == names.len() {
                names.push(name);
            }
            group.push(number);
        }
        let numbers = known.iter().enumerate().map(|(number, known)| (known.series.clone(), number)).collect();
        Groups { known, numbers, group, names }
    }
}

fn cell_of(series: &Series, dimension: Dimension) -> Cell {
    match dimension {
        Dimension::Source => Cell::Text(Arc::clone(&series.source)),
        Dimension::Experiment => Cell::Text(Arc::clone(&series.experiment)),
        Dimension::Server => Cell::name(series.server.as_str()),
        Dimension::Size => Cell::Count(series.size),
        Dimension::Tor => Cell::Text(Arc::clone(&series.tor)),
    }
}

/// What rows are made with, beside what was gathered.
pub(super) struct Context<'a> {
    pub question: &'a Question,
    pub groups: &'a Groups,
    slots: &'a BlockSlots,
    /// Whether all rows of the results are there.
    pub exact: bool,
}

impl Context<'_> {
    /// The cell that says when a period began: a day, or the moment of an hour; nothing where it is all of the time.
    pub fn period(&self, start: UnixMicros) -> Cell {
        match self.question.period {
            None => Cell::Null,
            Some(Period::Hour) => Cell::name(&start.to_string().replacen(".000000", "", 1)),
            Some(_) => Cell::name(&date_text(day_of(start))),
        }
    }

    /// Slots done of slots planned in a period, of the experiments that have measured these series; nothing is known
    /// of imported ones.
    pub fn coverage(&self, start: UnixMicros, of: impl Fn(usize, &Series) -> bool) -> Cell {
        let own =
            self.groups.known.iter().enumerate().filter(|(number, known)| known.own && of(*number, &known.series));
        let experiments: BTreeSet<&Arc<str>> = own.map(|(_, known)| &known.series.experiment).collect();
        let mut all = Slots::default();
        for experiment in experiments {
            all.add(self.slots.get(&(start, Arc::clone(experiment))).copied().unwrap_or_default());
        }
        all.coverage().into()
    }

    /// The same of the experiments of a group.
    pub fn group_coverage(&self, start: UnixMicros, group: usize) -> Cell {
        self.coverage(start, |number, _| self.groups.group[number] == group)
    }

    /// The periods and groups in which slots were planned, whether or not there is a result. None of a day's hours if
    /// rows are gone: what looks like a gap may be theirs.
    pub fn planned(&self) -> BTreeSet<(UnixMicros, usize)> {
        if self.question.period == Some(Period::Hour) && !self.exact {
            return BTreeSet::new();
        }
        let mut of_experiment: HashMap<&Arc<str>, BTreeSet<usize>> = HashMap::new();
        for (known, group) in self.groups.known.iter().zip(&self.groups.group).filter(|(known, _)| known.own) {
            of_experiment.entry(&known.series.experiment).or_default().insert(*group);
        }
        let planned = self.slots.iter().filter(|(_, slots)| slots.planned > 0);
        let groups = planned.map(|((start, experiment), _)| (*start, of_experiment.get(experiment)));
        groups.flat_map(|(start, groups)| groups.into_iter().flatten().map(move |group| (start, *group))).collect()
    }
}

impl Series {
    /// Whether the result belongs to it.
    fn has(&self, sample: &crate::stats::Sample) -> bool {
        let same = |a: &Arc<str>, b: &Arc<str>| Arc::ptr_eq(a, b) || a == b;
        same(&self.experiment, &sample.experiment)
            && same(&self.source, &sample.source)
            && same(&self.tor, &sample.tor)
            && (self.kind, self.server, self.size) == (sample.kind, sample.server, sample.size)
    }

    /// Whether its runs are downloads.
    pub(super) fn downloads(&self) -> bool {
        self.kind == Kind::Download
    }
}
