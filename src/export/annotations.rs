//! Notes as JSON and as CSV (RFC 4180).

use serde::{Deserialize, Serialize};

use super::csv::quoted;
use crate::annotation::Annotation;

/// A note as it is shown. Names that end in `_unix_us` are microseconds since the Unix epoch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AnnotationJson {
    /// Its number.
    pub id: i64,
    /// Its place in the sequence of revisions that it shares with the results.
    pub revision: i64,
    /// Who wrote it: the name of a token, or of a user.
    pub author: String,
    /// When it was written.
    pub created: String,
    /// The same.
    pub created_unix_us: i64,
    /// The run that it is about; null where it is about a time.
    pub run_id: Option<String>,
    /// The source that it is about; null means all.
    pub source: Option<String>,
    /// The experiment that it is about; null means all.
    pub experiment: Option<String>,
    /// The tor that it is about; null means all.
    pub tor: Option<String>,
    /// The first moment that it is about; of a run its START.
    pub since: String,
    /// The same.
    pub since_unix_us: i64,
    /// The last moment, included.
    pub until: String,
    /// The same.
    pub until_unix_us: i64,
    /// The note.
    pub note: String,
    /// Its tags, in alphabetical order.
    pub tags: Vec<String>,
    /// The number of the note that it replaces.
    pub replaces: Option<i64>,
    /// The number of the note that took its place.
    pub replaced_by: Option<i64>,
}

impl From<&Annotation> for AnnotationJson {
    fn from(annotation: &Annotation) -> Self {
        let (written, about) = (&annotation.written, &annotation.written.about);
        AnnotationJson {
            id: annotation.id,
            revision: annotation.revision,
            author: written.author.clone(),
            created: written.created.to_string(),
            created_unix_us: written.created.0,
            run_id: about.run.as_ref().map(ToString::to_string),
            source: about.source.clone(),
            experiment: about.experiment.clone(),
            tor: about.tor.clone(),
            since: about.since.to_string(),
            since_unix_us: about.since.0,
            until: about.until.to_string(),
            until_unix_us: about.until.0,
            note: written.note.clone(),
            tags: written.tags.clone(),
            replaces: written.replaces,
            replaced_by: annotation.replaced_by,
        }
    }
}

/// The line of headings: the JSON's properties.
pub const CSV_HEADER: &str = "id,revision,author,created,created_unix_us,run_id,source,experiment,tor,since,\
    since_unix_us,until,until_unix_us,note,tags,replaces,replaced_by\r\n";

/// A note as a record, its tags in one cell with spaces between. An empty cell means that there is no value, and no
/// cell is a formula.
pub fn csv_line(annotation: &AnnotationJson) -> String {
    let number = |number: Option<i64>| number.map_or(String::new(), |number| number.to_string());
    let text = |text: &Option<String>| text.as_deref().map_or(String::new(), quoted);
    let cells = [
        annotation.id.to_string(),
        annotation.revision.to_string(),
        quoted(&annotation.author),
        quoted(&annotation.created),
        annotation.created_unix_us.to_string(),
        text(&annotation.run_id),
        text(&annotation.source),
        text(&annotation.experiment),
        text(&annotation.tor),
        quoted(&annotation.since),
        annotation.since_unix_us.to_string(),
        quoted(&annotation.until),
        annotation.until_unix_us.to_string(),
        quoted(&annotation.note),
        quoted(&annotation.tags.join(" ")),
        number(annotation.replaces),
        number(annotation.replaced_by),
    ];
    cells.join(",") + "\r\n"
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::annotation::{About, NewAnnotation};
    use crate::clock::UnixMicros;

    fn hostile() -> AnnotationJson {
        let at = UnixMicros(1_795_341_600_000_000);
        let about = About {
            run: None,
            source: Some("=1+1".to_owned()),
            experiment: None,
            tor: Some("a,b".to_owned()),
            since: at,
            until: at,
        };
        let written = NewAnnotation {
            author: "-me".to_owned(),
            created: at,
            about,
            note: "@SUM(A1)\nsays \"no\"".to_owned(),
            tags: ["a", "b"].map(str::to_owned).to_vec(),
            replaces: Some(3),
        };
        AnnotationJson::from(&Annotation { id: 4, revision: 9, replaced_by: None, written })
    }

    #[test]
    fn the_columns_are_the_properties_and_no_cell_is_a_formula() {
        let value = serde_json::to_value(hostile()).unwrap();
        let mut names: Vec<&str> = value.as_object().unwrap().keys().map(String::as_str).collect();
        let mut columns: Vec<&str> = CSV_HEADER.trim_end().split(',').collect();
        names.sort_unstable();
        columns.sort_unstable();
        assert_eq!(columns, names);
        let moment = "2026-11-22T10:00:00.000000Z,1795341600000000";
        let expected =
            format!("4,9,'-me,{moment},,'=1+1,,\"a,b\",{moment},{moment},\"'@SUM(A1)\nsays \"\"no\"\"\",a b,3,\r\n");
        assert_eq!(csv_line(&hostile()), expected);
    }
}
