//! What templates find beside Jinja's own: the names of `transformers`.

use std::time::{SystemTime, UNIX_EPOCH};

use minijinja::{Environment, Error, ErrorKind, Value, value::Kwargs};
use serde::Serialize as _;
use serde_json::ser::{Formatter, PrettyFormatter};

use super::strftime::strftime;

/// Begins the detail of an error that a template raised itself.
pub(super) const RAISED: &str = "raised: ";

/// An environment as `transformers` makes it.
pub(super) fn environment() -> Environment<'static> {
    let mut environment = Environment::new();
    environment.set_trim_blocks(true);
    environment.set_lstrip_blocks(true);
    environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    environment.add_function("raise_exception", raise_exception);
    environment.add_function("strftime_now", strftime_now);
    environment.add_filter("tojson", tojson);
    environment
}

fn raise_exception(message: String) -> Result<Value, Error> {
    let detail = format!("{RAISED}{message}");
    Err(Error::new(ErrorKind::InvalidOperation, detail))
}

fn strftime_now(format: &str) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    strftime(format, now.map_or(0, |since| since.as_secs()))
}

/// Python's `json.dumps(value, ensure_ascii=False, indent=…)`.
fn tojson(value: &Value, kwargs: Kwargs) -> Result<Value, Error> {
    let indent: Option<usize> = kwargs.get("indent")?;
    let _: Option<bool> = kwargs.get("ensure_ascii")?;
    kwargs.assert_all_used()?;
    let text = match indent {
        Some(width) => {
            let spaces = " ".repeat(width.min(16));
            json(value, PrettyFormatter::with_indent(spaces.as_bytes()))
        }
        None => json(value, OneLine),
    };
    let text = text.map_err(|error| {
        Error::new(ErrorKind::BadSerialization, "no JSON can be made of it").with_source(error)
    })?;
    Ok(Value::from(text))
}

fn json(value: &Value, formatter: impl Formatter) -> serde_json::Result<String> {
    let mut out = Vec::new();
    let mut serializer = serde_json::Serializer::with_formatter(&mut out, formatter);
    value.serialize(&mut serializer)?;
    // serde_json writes UTF-8 only.
    Ok(String::from_utf8_lossy(&out).into_owned())
}

/// Python's separators: a space after commas and colons.
struct OneLine;

impl Formatter for OneLine {
    fn begin_array_value<W>(&mut self, writer: &mut W, first: bool) -> std::io::Result<()>
    where
        W: ?Sized + std::io::Write,
    {
        writer.write_all(if first { b"" } else { b", " })
    }

    fn begin_object_key<W>(&mut self, writer: &mut W, first: bool) -> std::io::Result<()>
    where
        W: ?Sized + std::io::Write,
    {
        writer.write_all(if first { b"" } else { b", " })
    }

    fn begin_object_value<W>(&mut self, writer: &mut W) -> std::io::Result<()>
    where
        W: ?Sized + std::io::Write,
    {
        writer.write_all(b": ")
    }
}
