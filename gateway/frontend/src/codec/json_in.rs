//! The JSON of an inference request.
//!
//! One pass over the bytes, straight into tensor storage. `data` that comes before `datatype` and `shape` is checked for syntax, left
//! aside, and read once both are known. Where a member comes twice the first one counts, as with Triton. Unknown members are counted
//! and left aside; wrong types are refused by name. Deliberately absent: the binary section, and what the model expects.

use std::fmt;

use bascule_runtime_api::{DataType, Shape, Tensor};
use bascule_serving::InferError;
use smallvec::SmallVec;

use super::cursor::{Cursor, Unexpected};
use super::elements::{Budget, read_tensor};
use super::parameters::{
    InputParameters, OutputParameters, RequestParameters, input_parameters, output_parameters, request_parameters, shown,
};

/// Inputs, and outputs, that one request may name.
pub(crate) const MAX_TENSORS: usize = 1024;

/// How errors name the header that divides a body.
const JSON_LENGTH: &str = "the header 'Inference-Header-Content-Length'";

/// Dimensions that a shape may have.
pub(crate) const MAX_RANK: usize = 64;

/// A request as its JSON describes it.
#[derive(Debug, Default)]
pub(crate) struct Described {
    pub(crate) id: Option<String>,
    pub(crate) parameters: RequestParameters,
    pub(crate) inputs: SmallVec<[DescribedInput; 1]>,
    pub(crate) outputs: SmallVec<[DescribedOutput; 1]>,
    /// Members and parameters that have no meaning here.
    pub(crate) ignored: u32,
}

/// An input, or where to find it.
#[derive(Debug)]
pub(crate) struct DescribedInput {
    pub(crate) name: String,
    pub(crate) contents: Contents,
}

/// Where an input's elements are.
#[derive(Debug)]
pub(crate) enum Contents {
    /// In the JSON; here they are.
    Read(Tensor),
    /// In the binary section.
    Binary { datatype: DataType, shape: Shape, size_bytes: usize },
}

/// An output that is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DescribedOutput {
    pub(crate) name: String,
    pub(crate) parameters: OutputParameters,
}

/// Reads a request. Tensors in the JSON may take `max_tensor_bytes` together.
///
/// # Errors
/// Names the member and what was expected there.
pub(crate) fn describe(text: &[u8], max_tensor_bytes: usize) -> Result<Described, InferError> {
    let mut reader = Reader { cursor: Cursor::new(text), budget: Budget::new(max_tensor_bytes), ignored: 0 };
    let mut request = reader.request()?;
    if let Err(error) = reader.cursor.end() {
        let message = error.in_field(text, "request");
        return Err(InferError::invalid(format!("{message}; before binary data, {JSON_LENGTH} tells where the JSON ends")));
    }
    request.ignored = reader.ignored;
    Ok(request)
}

/// How errors name an input or output.
struct Label<'a> {
    side: &'static str,
    index: usize,
    name: Option<&'a str>,
}

impl fmt::Display for Label<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name {
            Some(name) => write!(f, "{} '{}'", self.side, shown(name)),
            None => write!(f, "{}s[{}]", self.side, self.index),
        }
    }
}

struct Reader<'a> {
    cursor: Cursor<'a>,
    budget: Budget,
    ignored: u32,
}

impl Reader<'_> {
    fn request(&mut self) -> Result<Described, InferError> {
        let text = self.cursor.text();
        let outside = |error: Unexpected| error.in_field(text, "request");
        let mut id = None;
        let mut parameters = None;
        let mut inputs = None;
        let mut outputs = None;
        self.cursor.expect(b'{', "an object").map_err(outside)?;
        let mut first = true;
        while let Some(member) = self.cursor.next_member(&mut first).map_err(outside)? {
            match member.as_ref() {
                "id" if id.is_none() => {
                    let read = self.cursor.string("a string").map_err(|error| error.in_field(text, "'id'"))?;
                    id = Some(read.into_owned());
                }
                "parameters" if parameters.is_none() => parameters = Some(request_parameters(&mut self.cursor, &mut self.ignored)?),
                "inputs" if inputs.is_none() => inputs = Some(self.list("'inputs'", Reader::input)?),
                "outputs" if outputs.is_none() => outputs = Some(self.list("'outputs'", Reader::output)?),
                other => self.ignore(format_args!("'{}'", shown(other)))?,
            }
        }
        let Some(inputs) = inputs else {
            return Err(InferError::invalid("request: 'inputs' is missing, expected an array of objects"));
        };
        Ok(Described { id, parameters: parameters.unwrap_or_default(), inputs, outputs: outputs.unwrap_or_default(), ignored: 0 })
    }

    fn list<T>(
        &mut self,
        member: &'static str,
        mut read: impl FnMut(&mut Self, usize) -> Result<T, InferError>,
    ) -> Result<SmallVec<[T; 1]>, InferError> {
        let text = self.cursor.text();
        let mut list = SmallVec::new();
        self.cursor.expect(b'[', "an array of objects").map_err(|error| error.in_field(text, member))?;
        let mut first = true;
        while self.cursor.next_element(&mut first).map_err(|error| error.in_field(text, member))? {
            if list.len() == MAX_TENSORS {
                return Err(InferError::invalid(format!("{member}: expected at most {MAX_TENSORS} of them")));
            }
            list.push(read(self, list.len())?);
        }
        Ok(list)
    }

    fn input(&mut self, index: usize) -> Result<DescribedInput, InferError> {
        const SIDE: &str = "input";
        let text = self.cursor.text();
        let mut draft = Draft::default();
        let unnamed = Label { side: SIDE, index, name: None };
        self.cursor.expect(b'{', "an object").map_err(|error| error.in_field(text, &unnamed))?;
        let mut first = true;
        while let Some(member) = self
            .cursor
            .next_member(&mut first)
            .map_err(|error| error.in_field(text, Label { side: SIDE, index, name: draft.name.as_deref() }))?
        {
            let name = draft.name.take();
            let label = Label { side: SIDE, index, name: name.as_deref() };
            match member.as_ref() {
                "name" if name.is_none() => draft.name = Some(self.name(&label)?),
                "shape" if draft.shape.is_none() => draft.shape = Some(self.shape(&label)?),
                "datatype" if draft.datatype.is_none() => draft.datatype = Some(self.datatype(&label)?),
                "parameters" if draft.parameters.is_none() => {
                    draft.parameters = Some(input_parameters(&mut self.cursor, &label, &mut self.ignored)?);
                }
                "data" if draft.elements.is_none() => draft.elements = Some(self.data(&label, &draft)?),
                other => self.ignore(format_args!("{label}, '{}'", shown(other)))?,
            }
            draft.name = draft.name.or(name);
        }
        self.finish(draft, index)
    }

    /// Reads the elements, or only notes where they are while datatype and shape are not both known.
    fn data(&mut self, label: &Label<'_>, draft: &Draft) -> Result<Elements, InferError> {
        if let (Some(datatype), Some(shape)) = (draft.datatype, &draft.shape) {
            return Ok(Elements::Read(read_tensor(&mut self.cursor, label, datatype, shape, &mut self.budget)?));
        }
        let text = self.cursor.text();
        let mark = self.cursor.mark();
        self.cursor.skip_value().map_err(|error| error.in_field(text, format_args!("{label}, 'data'")))?;
        Ok(Elements::Later(mark))
    }

    fn finish(&mut self, draft: Draft, index: usize) -> Result<DescribedInput, InferError> {
        let label = Label { side: "input", index, name: draft.name.as_deref() };
        let missing =
            |member: &str, expected: &str| InferError::invalid(format!("{label}: '{member}' is missing, expected {expected}"));
        let Some(datatype) = draft.datatype else { return Err(missing("datatype", "a string such as FP32")) };
        let Some(shape) = draft.shape else { return Err(missing("shape", "an array of integers")) };
        let size = draft.parameters.unwrap_or_default().binary_data_size;
        let contents = match (draft.elements, size) {
            (Some(_), Some(_)) => {
                return Err(InferError::invalid(format!(
                    "{label}: expected either 'data' or the parameter 'binary_data_size', got both"
                )));
            }
            (None, None) => return Err(missing("data", "it or the parameter 'binary_data_size'")),
            (None, Some(size_bytes)) => Contents::Binary { datatype, shape, size_bytes },
            (Some(Elements::Read(tensor)), None) => Contents::Read(tensor),
            (Some(Elements::Later(mark)), None) => {
                let mut cursor = self.cursor.at(mark);
                Contents::Read(read_tensor(&mut cursor, &label, datatype, &shape, &mut self.budget)?)
            }
        };
        match draft.name {
            Some(name) => Ok(DescribedInput { name, contents }),
            None => Err(missing("name", "a string")),
        }
    }

    fn output(&mut self, index: usize) -> Result<DescribedOutput, InferError> {
        let text = self.cursor.text();
        let mut name: Option<String> = None;
        let mut parameters: Option<OutputParameters> = None;
        let label = |name: &Option<String>| Label { side: "output", index, name: name.as_deref() }.to_string();
        self.cursor.expect(b'{', "an object").map_err(|error| error.in_field(text, label(&None)))?;
        let mut first = true;
        while let Some(member) = self.cursor.next_member(&mut first).map_err(|error| error.in_field(text, label(&name)))? {
            let known = Label { side: "output", index, name: name.as_deref() };
            match member.as_ref() {
                "name" if name.is_none() => name = Some(self.name(&known)?),
                "parameters" if parameters.is_none() => {
                    parameters = Some(output_parameters(&mut self.cursor, &known, &mut self.ignored)?);
                }
                other => self.ignore(format_args!("{known}, '{}'", shown(other)))?,
            }
        }
        match name {
            Some(name) => Ok(DescribedOutput { name, parameters: parameters.unwrap_or_default() }),
            None => Err(InferError::invalid(format!("{}: 'name' is missing, expected a string", label(&None)))),
        }
    }

    fn name(&mut self, label: &Label<'_>) -> Result<String, InferError> {
        let text = self.cursor.text();
        let name = self.cursor.string("a string").map_err(|error| error.in_field(text, format_args!("{label}, 'name'")))?;
        Ok(name.into_owned())
    }

    fn datatype(&mut self, label: &Label<'_>) -> Result<DataType, InferError> {
        let text = self.cursor.text();
        let name = self
            .cursor
            .string("a string such as FP32")
            .map_err(|error| error.in_field(text, format_args!("{label}, 'datatype'")))?;
        name.parse().map_err(|error| InferError::invalid(format!("{label}: {error}")))
    }

    fn shape(&mut self, label: &Label<'_>) -> Result<Shape, InferError> {
        const EXPECTED: &str = "an integer from 0 to 9223372036854775807";
        let text = self.cursor.text();
        let in_shape = |error: Unexpected| error.in_field(text, format_args!("{label}, 'shape'"));
        let mut shape = Shape::new();
        self.cursor.expect(b'[', "an array of integers").map_err(in_shape)?;
        let mut first = true;
        while self.cursor.next_element(&mut first).map_err(in_shape)? {
            let at = self.cursor.mark();
            let dim = self.cursor.unsigned(EXPECTED).map_err(in_shape)?;
            let dim = i64::try_from(dim).map_err(|_| in_shape(Unexpected { at, expected: EXPECTED }))?;
            if shape.len() == MAX_RANK {
                return Err(InferError::invalid(format!("{label}, 'shape': expected at most {MAX_RANK} dimensions")));
            }
            shape.push(dim);
        }
        Ok(shape)
    }

    fn ignore(&mut self, member: fmt::Arguments<'_>) -> Result<(), InferError> {
        let text = self.cursor.text();
        self.ignored = self.ignored.saturating_add(1);
        self.cursor.skip_value().map_err(|error| error.in_field(text, member))
    }
}

/// An input while its members are read.
#[derive(Default)]
struct Draft {
    name: Option<String>,
    shape: Option<Shape>,
    datatype: Option<DataType>,
    parameters: Option<InputParameters>,
    elements: Option<Elements>,
}

enum Elements {
    Read(Tensor),
    Later(usize),
}

#[cfg(test)]
mod tests;
