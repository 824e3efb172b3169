//! The paper that a waterfall is drawn on: lines of at most [`WIDTH`] columns, bars on a common time axis.

/// Columns of a line.
pub(super) const WIDTH: usize = 100;

/// Columns of a label, and of the number after it.
const LABEL: usize = 33;
const NUMBER: usize = 9;

/// Columns of a bar, which ends the line.
pub(super) const BAR: usize = WIDTH - LABEL - NUMBER - 3;

const LEVELS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];

/// Lines that are being written.
#[derive(Default)]
pub(super) struct Sheet(Vec<String>);

impl Sheet {
    /// A line of text.
    pub(super) fn line(&mut self, text: impl Into<String>) {
        self.0.push(text.into());
    }

    /// An empty line, unless there is nothing above it.
    pub(super) fn gap(&mut self) {
        if !self.0.is_empty() {
            self.line("");
        }
    }

    /// A label, a number and a bar in their columns.
    pub(super) fn row(&mut self, label: &str, number: &str, bar: &str) {
        let label: String = label.chars().take(LABEL).collect();
        self.line(format!("{label:<LABEL$} {number:>NUMBER$}  {bar}"));
    }

    /// A label over the columns of label and number, and a bar.
    pub(super) fn wide_row(&mut self, label: &str, bar: &str) {
        const WIDE: usize = LABEL + 1 + NUMBER;
        let label: String = label.chars().take(WIDE).collect();
        self.line(format!("{label:<WIDE$}  {bar}"));
    }

    /// The text, each line ended. Whatever strangers put into it, it is ASCII and bars, and no wider than it may be.
    pub(super) fn text(&self) -> String {
        let shown = |c: char| if matches!(c, ' '..='~' | '▁'..='█' | '░') { c } else { '?' };
        let line = |line: &String| line.chars().take(WIDTH).map(shown).collect::<String>().trim_end().to_owned() + "\n";
        self.0.iter().map(line).collect()
    }
}

/// A stretch of time in µs after START, as wide as a bar.
#[derive(Clone, Copy)]
pub(super) struct Axis {
    from: i64,
    to: i64,
}

impl Axis {
    /// From the first of these moments (or zero) to the last.
    pub(super) fn over(moments: impl IntoIterator<Item = i64>) -> Self {
        let (from, to) = moments.into_iter().fold((0, 0), |(from, to), at| (from.min(at), to.max(at)));
        Axis { from, to: to.max(from.saturating_add(1)) }
    }

    /// The moments at both ends, in ms.
    pub(super) fn ruler(&self) -> String {
        let (from, to) = (ms(self.from), format!("{} ms", ms(self.to)));
        let between = BAR.saturating_sub(from.len());
        format!("{from}{to:>between$}")
    }

    /// A bar of this character from one moment to another, at least one column wide.
    pub(super) fn bar(&self, begin: i64, end: i64, character: char) -> String {
        let before = self.column(begin).min(BAR - 1);
        let length = self.column(end).saturating_sub(before).max(1);
        " ".repeat(before) + &String::from(character).repeat(length)
    }

    /// The moments at which the columns end, in order.
    pub(super) fn ends(&self) -> impl Iterator<Item = i64> {
        let (from, length) = (i128::from(self.from), i128::from(self.to) - i128::from(self.from));
        (1..=BAR as i128).map(move |column| (from + length * column / BAR as i128) as i64)
    }

    fn column(&self, at: i64) -> usize {
        let (at, from, to) = (i128::from(at), i128::from(self.from), i128::from(self.to));
        let column = (at - from) * BAR as i128 / (to - from);
        column.clamp(0, BAR as i128) as usize
    }
}

/// Values as one character each, a full block for the largest of them, nothing where there is none.
pub(super) fn sparkline(values: &[Option<f64>]) -> String {
    let most = largest(values);
    let level = |value: f64| if most > 0.0 { (value / most * 8.0).ceil().clamp(1.0, 8.0) as usize - 1 } else { 0 };
    values.iter().map(|value| value.map_or(' ', |value| LEVELS[level(value)])).collect()
}

/// The largest of the values; 0 where there is none.
pub(super) fn largest(values: &[Option<f64>]) -> f64 {
    values.iter().flatten().fold(0.0, |most: f64, value| most.max(*value))
}

/// µs as ms with one decimal.
pub(super) fn ms(micros: i64) -> String {
    format!("{:.1}", micros as f64 / 1e3)
}

/// A moment in ms before or after START.
pub(super) fn beside_start(micros: i64) -> String {
    let side = if micros < 0 { "before" } else { "after" };
    format!("{:.1} ms {side} START", micros.unsigned_abs() as f64 / 1e3)
}
