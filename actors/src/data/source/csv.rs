//! Tables as text, one sample a row.

use std::path::PathBuf;

use footlight_runtime::HostTensor;
use serde::{Deserialize, Serialize};

use super::{Arrays, DataError, files, name_of};

/// The most of a field that errors show.
const SHOWN: usize = 40;
/// The most names that errors list.
const LISTED: usize = 20;

/// A table in a CSV file (RFC 4180), read into memory: each row is a sample.
///
/// Inputs are `f32` `[columns]`; the target is a class (`i64`, a number), or `f32` `[columns]` for a regression. Every
/// number must be finite.
///
/// ```
/// # use footlight_actors::data::{Csv, DataSpec};
/// let iris = Csv::at("iris.csv").label("species").names(["setosa", "versicolor", "virginica"]);
/// let data = DataSpec::new(iris).hold_out(0.2);
/// let prices = Csv::at("houses.csv").inputs(["rooms", "area"]).targets(["price"]);
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Csv {
    at: PathBuf,
    delimiter: u8,
    header: bool,
    inputs: Vec<String>,
    target: Target,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
enum Target {
    /// Nobody has said yet.
    None,
    /// A column with numbers below the number of classes, where that is known; or with one of these names.
    Label { column: String, classes: Option<usize>, names: Vec<String> },
    /// Columns with numbers.
    Values(Vec<String>),
}

impl Csv {
    /// This file, or `s3://bucket/key`; commas between fields, the first line names the columns.
    pub fn at(path: impl Into<PathBuf>) -> Self {
        Csv {
            at: path.into(),
            delimiter: b',',
            header: true,
            inputs: Vec::new(),
            target: Target::None,
        }
    }

    /// The column with the class: integers from 0.
    #[must_use]
    pub fn label(mut self, column: impl Into<String>) -> Self {
        self.target = Target::Label { column: column.into(), classes: None, names: Vec::new() };
        self
    }

    /// Labels are below this: checked when the file is read. For a column that [`label`](Self::label) named.
    #[must_use]
    pub fn classes(mut self, number: usize) -> Self {
        if let Target::Label { classes, .. } = &mut self.target {
            *classes = Some(number);
        }
        self
    }

    /// The label's column holds these names: the first is class 0. For a column that [`label`](Self::label) named.
    #[must_use]
    pub fn names(mut self, of: impl IntoIterator<Item = impl Into<String>>) -> Self {
        if let Target::Label { names, .. } = &mut self.target {
            *names = of.into_iter().map(Into::into).collect();
        }
        self
    }

    /// The columns that a regression is to tell, in this order.
    #[must_use]
    pub fn targets(mut self, columns: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.target = Target::Values(columns.into_iter().map(Into::into).collect());
        self
    }

    /// The columns that are the input, in this order. Default: all that are no target.
    #[must_use]
    pub fn inputs(mut self, columns: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.inputs = columns.into_iter().map(Into::into).collect();
        self
    }

    /// What stands between fields, in ASCII.
    #[must_use]
    pub fn delimiter(mut self, delimiter: char) -> Self {
        // Anything else is refused when the file is read: NUL stands in no text.
        self.delimiter = u8::try_from(delimiter).unwrap_or(0);
        self
    }

    /// The first line is a sample already; columns are called `0`, `1`, …
    #[must_use]
    pub fn without_header(mut self) -> Self {
        self.header = false;
        self
    }

    pub(super) fn open(&self) -> Result<Arrays, DataError> {
        let name = name_of(&self.at);
        let broken = |why: String| DataError::Format { at: name.clone(), format: "CSV", why };
        if !self.delimiter.is_ascii() || self.delimiter == 0 {
            return Err(DataError::Spec("a CSV file's delimiter is an ASCII character".to_owned()));
        }
        let bytes = files::read(&self.at)?;
        let mut table = csv::ReaderBuilder::new()
            .delimiter(self.delimiter)
            .has_headers(self.header)
            .trim(csv::Trim::All)
            .from_reader(&bytes[..]);
        let columns = self.columns(&name, &mut table).map_err(|error| match error {
            Ok(error) => error,
            Err(why) => broken(why),
        })?;
        let (mut inputs, mut values, mut labels) = (Vec::new(), Vec::new(), Vec::new());
        let mut count = 0;
        for record in table.records() {
            let record = record.map_err(|error| broken(error.to_string()))?;
            let row = Row { at: &name, record: &record, names: &columns.names };
            for &column in &columns.inputs {
                inputs.push(row.number(column)?);
            }
            match &self.target {
                Target::Label { classes, names, .. } => {
                    for &column in &columns.targets {
                        labels.push(row.label(column, *classes, names)?);
                    }
                }
                _ => {
                    for &column in &columns.targets {
                        values.push(row.number(column)?);
                    }
                }
            }
            count += 1;
        }
        let tensor = |made: Result<HostTensor, _>| made.map_err(|_| broken("too large".to_owned()));
        let inputs = tensor(HostTensor::from_vec(inputs, &[count, columns.inputs.len()]))?;
        let targets = match &self.target {
            Target::Label { .. } => tensor(HostTensor::from_vec(labels, &[count]))?,
            _ => tensor(HostTensor::from_vec(values, &[count, columns.targets.len()]))?,
        };
        Arrays::new(&name, inputs, targets)
    }

    /// Which columns are what. Outer errors are ours, inner ones the reader's.
    fn columns(
        &self,
        at: &str,
        table: &mut csv::Reader<&[u8]>,
    ) -> Result<Columns, Result<DataError, String>> {
        let first = table.headers().map_err(|error| Err(error.to_string()))?;
        let names: Vec<String> = match self.header {
            true => first.iter().map(str::to_owned).collect(),
            false => (0..first.len()).map(|column| column.to_string()).collect(),
        };
        if names.is_empty() {
            return Err(Ok(DataError::Empty { at: at.to_owned() }));
        }
        let find = |name: &String| {
            names.iter().position(|there| there == name).ok_or_else(|| {
                Ok(DataError::NoSuchName {
                    at: at.to_owned(),
                    what: "column",
                    name: name.clone(),
                    there: names.iter().take(LISTED).cloned().collect(),
                })
            })
        };
        let wanted: &[String] = match &self.target {
            Target::None => &[],
            Target::Label { column, .. } => std::slice::from_ref(column),
            Target::Values(columns) => columns,
        };
        if wanted.is_empty() {
            return Err(Ok(DataError::Spec(format!(
                "{at}: say which column is the target, with `label` or `targets`"
            ))));
        }
        let targets: Vec<usize> = wanted.iter().map(find).collect::<Result<_, _>>()?;
        let inputs: Vec<usize> = match self.inputs.as_slice() {
            [] => (0..names.len()).filter(|column| !targets.contains(column)).collect(),
            wanted => wanted.iter().map(find).collect::<Result<_, _>>()?,
        };
        if inputs.is_empty() {
            return Err(Ok(DataError::Spec(format!("{at} has no column beside its targets"))));
        }
        Ok(Columns { names, inputs, targets })
    }
}

struct Columns {
    names: Vec<String>,
    inputs: Vec<usize>,
    targets: Vec<usize>,
}

struct Row<'a> {
    at: &'a str,
    record: &'a csv::StringRecord,
    names: &'a [String],
}

impl Row<'_> {
    fn field(&self, column: usize) -> &str {
        self.record.get(column).unwrap_or_default()
    }

    fn wrong(&self, column: usize, why: impl Into<String>) -> DataError {
        DataError::Value {
            at: self.at.to_owned(),
            line: self.record.position().map_or(0, csv::Position::line),
            column: self.names.get(column).cloned().unwrap_or_default(),
            text: self.field(column).chars().take(SHOWN).collect(),
            why: why.into(),
        }
    }

    fn number(&self, column: usize) -> Result<f32, DataError> {
        match self.field(column).parse::<f32>() {
            Ok(number) if number.is_finite() => Ok(number),
            Ok(_) => Err(self.wrong(column, "not finite")),
            Err(_) => Err(self.wrong(column, "no number")),
        }
    }

    fn label(
        &self,
        column: usize,
        classes: Option<usize>,
        names: &[String],
    ) -> Result<i64, DataError> {
        let field = self.field(column);
        if !names.is_empty() {
            let found = names.iter().position(|name| name == field);
            let shown = || names.iter().take(LISTED).cloned().collect::<Vec<_>>();
            return found
                .map(|class| class as i64)
                .ok_or_else(|| self.wrong(column, format!("none of the classes {:?}", shown())));
        }
        let label = field.parse::<i64>().map_err(|_| self.wrong(column, "no class's number"))?;
        let most = classes.map_or(i64::MAX, |classes| classes as i64);
        if (0..most).contains(&label) {
            return Ok(label);
        }
        Err(self.wrong(
            column,
            match classes {
                Some(classes) => format!("not one of the {classes} classes 0..{classes}"),
                None => "below 0, and classes are not".to_owned(),
            },
        ))
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::data::{Field, source::Source};
    use footlight_runtime::tensor::DType;

    const IRIS: &str =
        "length,width,species\n5.1,3.5,setosa\n 7.0 ,3.2,versicolor\n\"6.3\",3.3,setosa\n";

    fn opened(text: &str, with: impl FnOnce(Csv) -> Csv) -> Result<Arrays, DataError> {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("t.csv"), text).unwrap();
        with(Csv::at(dir.path().join("t.csv"))).open()
    }

    /// The one line that a user sees, without the folder.
    fn complaint(text: &str, with: impl FnOnce(Csv) -> Csv) -> String {
        let text = opened(text, with).unwrap_err().to_string();
        assert!(!text.contains('\n'), "one line: {text}");
        match (text.find('/'), text.find("t.csv")) {
            (Some(from), Some(to)) => format!("{}{}", &text[..from], &text[to..]),
            _ => text,
        }
    }

    #[test]
    fn rows_are_samples_and_named_labels_are_classes() {
        let data =
            opened(IRIS, |csv| csv.label("species").names(["setosa", "versicolor"])).unwrap();
        assert_eq!((data.len(), data.input()), (3, Field::new(DType::F32, &[2])));
        assert_eq!(data.target(), Field::scalar(DType::I64));
        let sample = data.sample(1).unwrap();
        assert_eq!(sample.input.as_slice::<f32>().unwrap(), [7.0, 3.2]);
        assert_eq!(sample.target.as_slice::<i64>().unwrap(), [1]);
    }

    #[test]
    fn columns_are_chosen_and_put_in_order_and_a_table_may_have_no_header() {
        let text = "1;2;3\n4;5;6\n";
        let with = |csv: Csv| csv.without_header().delimiter(';').inputs(["2", "0"]).targets(["1"]);
        let data = opened(text, with).unwrap();
        let sample = data.sample(1).unwrap();
        assert_eq!(sample.input.as_slice::<f32>().unwrap(), [6.0, 4.0]);
        assert_eq!(sample.target.as_slice::<f32>().unwrap(), [5.0]);
        assert_eq!(data.target(), Field::new(DType::F32, &[1]));
    }

    #[test]
    fn what_is_wrong_with_a_field_is_told_with_its_line_and_column() {
        let species = |csv: Csv| csv.label("species").names(["setosa"]);
        assert_eq!(
            complaint(IRIS, species),
            "t.csv, line 3, column \"species\": \"versicolor\" is none of the classes [\"setosa\"]"
        );
        let label = |csv: Csv| csv.label("y").classes(2);
        assert_eq!(
            complaint("x,y\n1,0\n1,2\n", label),
            "t.csv, line 3, column \"y\": \"2\" is not one of the 2 classes 0..2"
        );
        assert_eq!(
            complaint("x,y\nmuch,0\n", label),
            "t.csv, line 2, column \"x\": \"much\" is no number"
        );
        for (text, part) in [
            ("x,y\nNaN,0\n", "\"NaN\" is not finite"),
            ("x,y\n1,-1\n", "\"-1\" is not one of the 2 classes"),
            ("x,y\n1,0.5\n", "\"0.5\" is no class's number"),
            ("x,y\n1,\n", "\"\" is no class's number"),
        ] {
            let told = complaint(text, label);
            assert!(told.contains(part), "{told}");
        }
    }

    #[test]
    fn a_table_that_is_empty_or_uneven_or_lacks_a_column_is_refused() {
        let label = |csv: Csv| csv.label("y");
        assert_eq!(complaint("", label), "t.csv holds no sample");
        assert_eq!(complaint("x,y\n", label), "t.csv holds no sample");
        assert_eq!(
            complaint("a,b\n1,2\n", label),
            "t.csv has no column \"y\": it has [\"a\", \"b\"]"
        );
        let told = complaint("x,y\n1,2\n1,2,3\n", label);
        assert!(told.contains("line: 3") && told.contains("3 fields"), "{told}");
        let told = complaint("x,y\n1,2\n", |csv| csv);
        assert!(told.contains("say which column is the target"), "{told}");
        let told = complaint("y\n1\n", label);
        assert!(told.contains("no column beside its targets"), "{told}");
    }
}
