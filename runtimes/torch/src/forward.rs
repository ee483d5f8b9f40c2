//! What a module's `forward` takes: names and types, out of the code that is part of every TorchScript file.
//!
//! The first object of the file's pickle names the module's class, and the class is text in a fixed form, which libtorch itself writes
//! and reads. Whatever is not in that form makes the arguments unknown and nothing more: they then go by position, as tensors.

use std::fmt;
use std::fs::File;
use std::io::Read as _;

use zip::ZipArchive;

/// The most that is read of a file of code: far more than any module has.
const MAX_CODE_BYTES: u64 = 16 << 20;

/// Where a pickle names its first object: protocol 2, then the class.
const PICKLE_START: &[u8] = b"\x80\x02c";

/// An argument of `forward`, `self` left out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Argument {
    pub(crate) name: String,
    pub(crate) kind: Kind,
    /// Whether it may be left out.
    pub(crate) is_optional: bool,
}

/// What an argument may be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Kind {
    Tensor,
    Int,
    Float,
    Bool,
    /// `List[Tensor]`.
    Tensors,
    /// `Dict[str, Tensor]`.
    NamedTensors,
    /// Nothing that a request could give.
    Other(String),
}

impl Kind {
    fn of(text: &str) -> Kind {
        match text {
            "Tensor" | "Optional[Tensor]" => Kind::Tensor,
            "int" | "Optional[int]" => Kind::Int,
            "float" | "Optional[float]" => Kind::Float,
            "bool" | "Optional[bool]" => Kind::Bool,
            "List[Tensor]" => Kind::Tensors,
            "Dict[str, Tensor]" => Kind::NamedTensors,
            other => Kind::Other(other.to_owned()),
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Kind::Tensor => "Tensor",
            Kind::Int => "int",
            Kind::Float => "float",
            Kind::Bool => "bool",
            Kind::Tensors => "List[Tensor]",
            Kind::NamedTensors => "Dict[str, Tensor]",
            Kind::Other(other) => other,
        })
    }
}

impl fmt::Display for Argument {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.name, self.kind)
    }
}

/// The arguments of the module in an archive; `None` where they can't be told.
pub(crate) fn arguments(archive: &mut ZipArchive<File>) -> Option<Vec<Argument>> {
    let pickle = archive
        .file_names()
        .filter_map(Result::ok)
        .find(|name| name.split_once('/').is_some_and(|(_, member)| member == "data.pkl"))?;
    let folder = pickle.split_once('/')?.0.to_owned();
    let class = class(&read(archive, &format!("{folder}/data.pkl"), 4096)?)?;
    let (module, class) = class.rsplit_once('.')?;
    let code = read(archive, &format!("{folder}/code/{}.py", module.replace('.', "/")), MAX_CODE_BYTES)?;
    parse(std::str::from_utf8(&code).ok()?, class)
}

fn read(archive: &mut ZipArchive<File>, name: &str, limit: u64) -> Option<Vec<u8>> {
    let mut content = Vec::new();
    archive.by_name(name).ok()?.take(limit).read_to_end(&mut content).ok()?;
    Some(content)
}

/// The class of a pickle's first object, with its module: `__torch__.net.Model`.
fn class(pickle: &[u8]) -> Option<String> {
    let mut lines = pickle.strip_prefix(PICKLE_START)?.split(|byte| *byte == b'\n');
    let (module, class) = (std::str::from_utf8(lines.next()?).ok()?, std::str::from_utf8(lines.next()?).ok()?);
    Some(format!("{module}.{class}"))
}

fn parse(code: &str, class: &str) -> Option<Vec<Argument>> {
    let body = code.split_once(&format!("class {class}(Module):\n"))?.1;
    // The class ends where a line begins that is not indented.
    let end = body.match_indices('\n').find(|(at, _)| body[at + 1..].starts_with("class ")).map_or(body.len(), |(at, _)| at);
    let arguments = body[..end].split_once("\n  def forward(self: ")?.1;
    let arguments = arguments.split_once(") -> ")?.0;
    // The type of `self` comes first.
    split(arguments).into_iter().skip(1).map(argument).collect()
}

fn argument(text: &str) -> Option<Argument> {
    let (name, kind) = text.split_once(':')?;
    let (kind, is_optional) = match kind.split_once('=') {
        Some((kind, _)) => (kind, true),
        None => (kind, false),
    };
    Some(Argument { name: name.trim().to_owned(), kind: Kind::of(kind.trim()), is_optional })
}

/// Splits at commas outside brackets.
fn split(text: &str) -> Vec<&str> {
    let (mut depth, mut start, mut parts) = (0, 0, Vec::new());
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            b'[' | b'(' => depth += 1,
            b']' | b')' => depth -= 1,
            b',' if depth == 0 => {
                parts.push(&text[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    parts.push(&text[start..]);
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(code: &str, class: &str) -> Option<Vec<String>> {
        let mark = |argument: &Argument| format!("{argument}{}", if argument.is_optional { "?" } else { "" });
        parse(code, class).map(|arguments| arguments.iter().map(mark).collect())
    }

    #[test]
    fn arguments_are_read_from_the_code_of_the_class() {
        let code = "class Part(Module):\n  training : bool\n  def forward(self: __torch__.net.Part,\n    p: Tensor) -> Tensor:\n    return p\n\
                    class Whole(Module):\n  training : bool\n  def other(self: __torch__.net.Whole) -> int:\n    return 1\n  \
                    def forward(self: __torch__.net.Whole,\n    x: Tensor,\n    sr: int,\n    more: Dict[str, Tensor],\n    \
                    hx: Optional[Tuple[Tensor, Tensor]]=None,\n    p: float=0.5) -> Tuple[Tensor, Tensor]:\n    return (x, x)\n";
        let whole = ["x: Tensor", "sr: int", "more: Dict[str, Tensor]", "hx: Optional[Tuple[Tensor, Tensor]]?", "p: float?"];
        assert_eq!(shown(code, "Whole").unwrap(), whole);
        assert_eq!(shown(code, "Part").unwrap(), ["p: Tensor"]);
        assert_eq!(shown(code, "Other"), None);
        assert_eq!(shown("class None_(Module):\n  training : bool\n", "None_"), None);
        let nothing = "class N(Module):\n  training : bool\n  def forward(self: __torch__.N) -> int:\n    return 1\n";
        assert_eq!(shown(nothing, "N").unwrap(), [""; 0]);
    }

    #[test]
    fn a_pickle_names_its_class_first() {
        assert_eq!(class(b"\x80\x02c__torch__.net\nModel\nq\x00)\x81"), Some("__torch__.net.Model".into()));
        assert_eq!(class(b"\x80\x04\x95"), None);
        assert_eq!(class(b"\x80\x02c\xff\xff\nModel\n"), None);
    }
}
