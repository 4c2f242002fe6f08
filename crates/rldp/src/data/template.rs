//! From a row to its text, by a MiniJinja template.

use std::collections::HashMap;
use std::fmt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use minijinja::value::{Enumerator, Kwargs, Object};
use minijinja::{Environment, Error, ErrorKind, State, UndefinedBehavior, Value, filters};

use super::error::{ColumnNames, DataError, shown_name};
use super::table::Table;

/// Instructions one row may cost, so that no template can run for ever.
const FUEL: u64 = 1_000_000;
const NAME: &str = "row";

/// A template that renders one row of a table.
///
/// * Every column is a variable: a string, empty where the value is missing (so `{% if bili %}` asks whether there is one).
/// * A column whose name is no identifier (`num.co`, `glyburide-metformin`, `2nd`) is `row["num.co"]`, and also a variable
///   with every other character as an underscore: `num_co`, `glyburide_metformin`, `_2nd`.
/// * Strings that look like numbers stay strings; `|int`, `|float` and `|round` take them (spaces around are ignored),
///   and `|fixed(1)` writes a number with that many decimals. Compare numbers as numbers: `age|float > 65`.
///   Something that is no number is an error, unless the filter has a default: `|int(0)`.
/// * A variable that is no column is an error, found before the first row is rendered. An optional column is asked for by
///   `row["name"] is defined`.
///
/// The same template and row always give the same text. Templates cannot read files or include others.
#[derive(Clone)]
pub struct Template {
    name: String,
    source: Arc<str>,
    environment: Arc<Environment<'static>>,
}

impl Template {
    /// Parses a template; `name` is only for messages.
    ///
    /// # Errors
    /// [`DataError::TemplateSyntax`].
    pub fn new(name: &str, source: &str) -> Result<Self, DataError> {
        let mut environment = Environment::new();
        environment.set_undefined_behavior(UndefinedBehavior::Strict);
        environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
        environment.set_fuel(Some(FUEL));
        environment.add_filter("int", int);
        environment.add_filter("float", float);
        environment.add_filter("round", round);
        environment.add_filter("fixed", fixed);
        environment
            .add_template_owned(NAME, source.to_owned())
            .map_err(|error| DataError::TemplateSyntax {
                template: name.to_owned(),
                line: error.line().unwrap_or(0),
                problem: error
                    .detail()
                    .map_or_else(|| error.kind().to_string(), str::to_owned),
            })?;
        Ok(Self {
            name: name.to_owned(),
            source: source.into(),
            environment: Arc::new(environment),
        })
    }

    /// Reads a template from a file.
    ///
    /// # Errors
    /// [`DataError::Io`], [`DataError::TemplateSyntax`].
    pub fn from_file(path: &Path) -> Result<Self, DataError> {
        let source = std::fs::read_to_string(path).map_err(|source| DataError::Io {
            path: path.to_owned(),
            source,
        })?;
        Self::new(&path.display().to_string(), &source)
    }

    /// The template's text, for a run's record.
    #[must_use]
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Ties the template to a table's columns.
    ///
    /// # Errors
    /// [`DataError::TemplateVariable`] if it uses a variable that is no column.
    pub fn bind(&self, table: &Table) -> Result<BoundTemplate, DataError> {
        let mut index_of: HashMap<String, usize> = HashMap::new();
        for (index, column) in table.columns().iter().enumerate() {
            index_of.insert(column.clone(), index);
        }
        for (index, column) in table.columns().iter().enumerate() {
            // A real column's own name wins over another one's alias.
            index_of.entry(alias(column)).or_insert(index);
        }
        let columns = ColumnNames::of(table.columns());
        let template = self
            .environment
            .get_template(NAME)
            .map_err(|error| self.failed(&error, table, 0, None))?;
        let globals: Vec<&str> = self.environment.globals().map(|(name, _)| name).collect();
        let mut unknown: Vec<String> = template
            .undeclared_variables(false)
            .into_iter()
            .filter(|name| {
                name != "row" && !index_of.contains_key(name) && !globals.contains(&name.as_str())
            })
            .collect();
        unknown.extend(
            template
                .undeclared_variables(true)
                .into_iter()
                .filter(|path| {
                    path.strip_prefix("row.")
                        .and_then(|rest| rest.split('.').next())
                        .is_some_and(|name| !index_of.contains_key(name))
                }),
        );
        unknown.sort();
        if let Some(name) = unknown.into_iter().next() {
            return Err(DataError::TemplateVariable {
                template: self.name.clone(),
                name,
                columns,
            });
        }
        Ok(BoundTemplate {
            template: self.clone(),
            index_of: Arc::new(index_of),
            columns,
        })
    }

    /// The error of a rendering, without any value of the row: the engine's own details may quote values, so
    /// they are kept only for kinds whose detail names parts of the template.
    fn failed(&self, error: &Error, table: &Table, row: usize, hint: Option<&str>) -> DataError {
        let kind = error.kind();
        let detail = match kind {
            ErrorKind::UnknownFilter | ErrorKind::UnknownTest | ErrorKind::UnknownFunction => {
                error.detail()
            }
            _ => hint,
        };
        let problem = match (kind, detail) {
            (ErrorKind::OutOfFuel, _) => format!("takes more than {FUEL} instructions"),
            (_, Some(detail)) => format!("{kind}: {detail}"),
            (_, None) => kind.to_string(),
        };
        DataError::TemplateRender {
            template: self.name.clone(),
            line: error.line().unwrap_or(0),
            problem,
            place: table.place(row),
        }
    }
}

impl fmt::Debug for Template {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Template")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

/// A template checked against a table's columns.
#[derive(Clone, Debug)]
pub struct BoundTemplate {
    template: Template,
    index_of: Arc<HashMap<String, usize>>,
    columns: ColumnNames,
}

impl BoundTemplate {
    /// The row's text, without spaces at its ends.
    ///
    /// # Errors
    /// [`DataError::TemplateRender`], [`DataError::TemplateVariable`]; neither carries a value of the row.
    pub fn render(&self, table: &Table, row: usize) -> Result<String, DataError> {
        let mut text = String::new();
        let mut ends = Vec::with_capacity(table.columns().len());
        for cell in table.row(row) {
            text.push_str(cell);
            ends.push(text.len());
        }
        let context = Arc::new(Row {
            text,
            ends,
            index_of: Arc::clone(&self.index_of),
            missed: Mutex::default(),
        });
        let template = &self.template;
        let rendered = template
            .environment
            .get_template(NAME)
            .and_then(|compiled| compiled.render(Value::from_dyn_object(Arc::clone(&context))));
        rendered
            .map(|text| text.trim().to_owned())
            .map_err(|error| {
                let missed = context
                    .missed
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .take();
                // The missed name may itself come from a cell (`row[race]`): it is told only if the template spells it.
                match missed.filter(|name| {
                    error.kind() == ErrorKind::UndefinedError
                        && template.source.contains(name.as_str())
                }) {
                    Some(name) => DataError::TemplateVariable {
                        template: template.name.clone(),
                        name: shown_name(&name),
                        columns: self.columns.clone(),
                    },
                    None => template.failed(&error, table, row, own_detail(&error)),
                }
            })
    }
}

/// A column's name as an identifier.
fn alias(column: &str) -> String {
    let mut name: String = column
        .chars()
        .map(|character| {
            if character.is_ascii_alphanumeric() {
                character
            } else {
                '_'
            }
        })
        .collect();
    if name.starts_with(|first: char| first.is_ascii_digit()) {
        name.insert(0, '_');
    }
    name
}

/// One row as the engine sees it, both as the variables and as the object `row`.
struct Row {
    text: String,
    ends: Vec<usize>,
    index_of: Arc<HashMap<String, usize>>,
    /// The last name looked up in vain.
    missed: Mutex<Option<String>>,
}

impl fmt::Debug for Row {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Row")
    }
}

impl Object for Row {
    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        let name = key.as_str()?;
        if let Some(index) = self.index_of.get(name) {
            let start = if *index == 0 {
                0
            } else {
                self.ends[*index - 1]
            };
            return Some(Value::from(&self.text[start..self.ends[*index]]));
        }
        if name == "row" {
            return Some(Value::from_dyn_object(Arc::clone(self)));
        }
        *self.missed.lock().unwrap_or_else(PoisonError::into_inner) = Some(name.to_owned());
        None
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        Enumerator::NonEnumerable
    }

    fn render(self: &Arc<Self>, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("row")
    }
}

/// Details that our own filters give, which are known to hold no value.
const NOT_A_NUMBER: &str = "the value given to a number filter is no number; missing values are empty: ask `{% if name %}` first, or give the filter a default";

fn own_detail(error: &Error) -> Option<&'static str> {
    (error.detail() == Some(NOT_A_NUMBER)).then_some(NOT_A_NUMBER)
}

fn not_a_number() -> Error {
    Error::new(ErrorKind::InvalidOperation, NOT_A_NUMBER)
}

/// A string as the number it spells; other values as they are; `None` for a string that is no finite number.
fn number(value: &Value) -> Option<Value> {
    let Some(text) = value.as_str() else {
        return Some(value.clone());
    };
    let text = text.trim();
    if let Ok(whole) = text.parse::<i64>() {
        return Some(Value::from(whole));
    }
    text.parse::<f64>()
        .ok()
        .filter(|number| number.is_finite())
        .map(Value::from)
}

fn default_of(default: Option<Value>, kwargs: &Kwargs) -> Result<Option<Value>, Error> {
    let default = match default {
        Some(default) => Some(default),
        None => kwargs.get::<Option<Value>>("default")?,
    };
    kwargs.assert_all_used()?;
    Ok(default)
}

fn no_keywords() -> Kwargs {
    Kwargs::from_iter(std::iter::empty::<(String, Value)>())
}

fn int(
    state: &State,
    value: &Value,
    default: Option<Value>,
    kwargs: Kwargs,
) -> Result<Value, Error> {
    let default = default_of(default, &kwargs)?;
    match number(value) {
        Some(number) => filters::int(state, &number, default, None, no_keywords()),
        None => default.ok_or_else(not_a_number),
    }
}

fn float(
    state: &State,
    value: &Value,
    default: Option<Value>,
    kwargs: Kwargs,
) -> Result<Value, Error> {
    let default = default_of(default, &kwargs)?;
    match number(value) {
        Some(number) => filters::float(state, &number, default, no_keywords()),
        None => default.ok_or_else(not_a_number),
    }
}

fn round(
    value: Value,
    precision: Option<i32>,
    method: Option<&str>,
    kwargs: Kwargs,
) -> Result<Value, Error> {
    filters::round(
        number(&value).ok_or_else(not_a_number)?,
        precision,
        method,
        kwargs,
    )
}

/// A number with exactly so many decimals: `{{ "1.19995"|fixed(1) }}` is `1.2`, and `|fixed` alone rounds to a whole number.
fn fixed(state: &State, value: &Value, decimals: Option<u32>) -> Result<String, Error> {
    let number =
        f64::try_from(float(state, value, None, no_keywords())?).map_err(|_| not_a_number())?;
    let text = format!(
        "{number:.precision$}",
        precision = decimals.unwrap_or(0).min(30) as usize
    );
    // No minus sign before a zero.
    let is_zero = text.bytes().all(|byte| matches!(byte, b'-' | b'0' | b'.'));
    Ok(if is_zero {
        text.trim_start_matches('-').to_owned()
    } else {
        text
    })
}
