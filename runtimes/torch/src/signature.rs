//! Which tensor of the signature is which argument and which result of the module.
//!
//! Inputs go by the number in names such as `INPUT__0`, as Triton has it, where every name has one; else by name, where all are names of
//! `forward`'s arguments; else in the order in which they are declared. Where `forward` takes one list or one dictionary of tensors, all
//! inputs are in it. Results that come as a dictionary go by name, all others by position.

use std::path::Path;

use bascule_runtime_api::{DataType, LoadError, LoadOptions, Signature, TensorSpec};

use crate::forward::{Argument, Kind};

/// What separates a tensor's name from its place.
const SEPARATOR: &str = "__";

/// A module's signature, and the places of its tensors.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Placed {
    pub(crate) signature: Signature,
    pub(crate) call: Call,
    /// `places[i]` is where output `i` is among the module's results, where these have no names.
    pub(crate) places: Vec<usize>,
}

/// How `forward` is called.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Call {
    /// Argument `i` is this input, and has to be of this kind.
    Each(Vec<(usize, Kind)>),
    /// One argument is a list of these inputs.
    List(Vec<usize>),
    /// One argument is a dictionary of all inputs.
    Dictionary,
}

/// Finds the places. `forward` is what the module takes, where that is known.
///
/// # Errors
/// Where nothing is declared, a datatype does not exist in libtorch, or the declaration does not fit `forward`.
pub(crate) fn place(options: &LoadOptions, forward: Option<&[Argument]>) -> Result<Placed, LoadError> {
    let unsupported = |message: String| LoadError::Unsupported { message };
    let Some(signature) = options.declared.clone().filter(|declared| !declared.outputs.is_empty()) else {
        return Err(unsupported(missing(&options.entrypoint, forward)));
    };
    for (side, specs) in [("input", &signature.inputs), ("output", &signature.outputs)] {
        if let Some(spec) = specs.iter().find(|spec| crate::value::kind(spec.datatype).is_none()) {
            let known: Vec<&str> = DataType::ALL
                .iter()
                .filter(|datatype| crate::value::kind(**datatype).is_some())
                .map(|datatype| datatype.name())
                .collect();
            let (name, datatype) = (&spec.name, spec.datatype);
            return Err(unsupported(format!("{side} '{name}': libtorch has no {datatype}, expected one of {}", known.join(", "))));
        }
    }
    let call = call(&signature.inputs, forward).map_err(unsupported)?;
    let places =
        numbers("output", &signature.outputs).map_err(unsupported)?.unwrap_or_else(|| (0..signature.outputs.len()).collect());
    Ok(Placed { signature, call, places })
}

fn missing(entrypoint: &Path, forward: Option<&[Argument]>) -> String {
    let takes = forward.map_or_else(String::new, |forward| format!(" (forward takes {})", listed(forward)));
    format!(
        "{}: a TorchScript file does not say what it takes and gives{takes}; declare it in model.toml, for example \
         [signature] inputs = [{{ name = \"x\", datatype = \"FP32\", shape = [-1, 4] }}] and outputs likewise, or in config.pbtxt",
        entrypoint.display()
    )
}

fn listed(arguments: &[Argument]) -> String {
    let arguments: Vec<String> = arguments.iter().map(Argument::to_string).collect();
    if arguments.is_empty() { "nothing".to_owned() } else { arguments.join(", ") }
}

fn call(inputs: &[TensorSpec], forward: Option<&[Argument]>) -> Result<Call, String> {
    let numbers = numbers("input", inputs)?;
    // From "input i is argument numbers[i]" to "argument i is input order[i]".
    let mut order: Vec<usize> = (0..inputs.len()).collect();
    if let Some(numbers) = &numbers {
        order.sort_by_key(|input| numbers[*input]);
    }
    let Some(forward) = forward else {
        return Ok(Call::Each(order.into_iter().map(|input| (input, Kind::Tensor)).collect()));
    };
    match forward {
        [Argument { kind: Kind::Tensors, .. }] => return Ok(Call::List(order)),
        [Argument { kind: Kind::NamedTensors, .. }] => return Ok(Call::Dictionary),
        _ => {}
    }
    let place = |input: &TensorSpec| forward.iter().position(|argument| argument.name == input.name);
    let named: Option<Vec<usize>> = inputs.iter().map(place).collect();
    match (&numbers, &named) {
        (None, Some(named)) => order.sort_by_key(|input| named[*input]),
        // A name of one argument at the place of another is a slip that would give wrong answers.
        (None, None) => {
            let misplaced = inputs
                .iter()
                .enumerate()
                .find_map(|(at, input)| Some((at, place(input)?, input)).filter(|(at, there, _)| at != there));
            if let Some((at, _, input)) = misplaced {
                return Err(format!("input '{}' is declared as number {at}, but forward takes {}", input.name, listed(forward)));
            }
        }
        (Some(_), _) => {}
    }
    let required = forward.iter().filter(|argument| !argument.is_optional).count();
    let is_prefix = named.as_ref().is_none_or(|_| numbers.is_some())
        || order.iter().enumerate().all(|(at, input)| named.as_ref().is_some_and(|named| named[*input] == at));
    if inputs.len() < required || inputs.len() > forward.len() || !is_prefix {
        let names: Vec<&str> = inputs.iter().map(|input| input.name.as_str()).collect();
        return Err(format!("inputs {names:?} are declared, but forward takes {}", listed(forward)));
    }
    let each = order
        .into_iter()
        .zip(forward)
        .map(|(input, argument)| fits(&inputs[input], argument).map(|()| (input, argument.kind.clone())));
    each.collect::<Result<Vec<(usize, Kind)>, String>>().map(Call::Each)
}

/// Whether a tensor of this kind can be the argument.
fn fits(input: &TensorSpec, argument: &Argument) -> Result<(), String> {
    use DataType::{Bool, Fp16, Fp32, Fp64, Int8, Int16, Int32, Int64, Uint8};
    let fits = match argument.kind {
        Kind::Tensor => true,
        Kind::Int => matches!(input.datatype, Uint8 | Int8 | Int16 | Int32 | Int64),
        Kind::Float => matches!(input.datatype, Fp16 | Fp32 | Fp64),
        Kind::Bool => input.datatype == Bool,
        Kind::Tensors | Kind::NamedTensors | Kind::Other(_) => false,
    };
    if fits { Ok(()) } else { Err(format!("input '{}' of {} can't be forward's argument {argument}", input.name, input.datatype)) }
}

/// The numbers in names, where every name has one.
fn numbers(side: &str, specs: &[TensorSpec]) -> Result<Option<Vec<usize>>, String> {
    let numbers: Option<Vec<usize>> = specs.iter().map(|spec| spec.name.rsplit_once(SEPARATOR)?.1.parse().ok()).collect();
    let Some(numbers) = numbers else { return Ok(None) };
    let mut sorted = numbers.clone();
    sorted.sort_unstable();
    if sorted.iter().copied().eq(0..specs.len()) {
        return Ok(Some(numbers));
    }
    let names: Vec<&str> = specs.iter().map(|spec| spec.name.as_str()).collect();
    Err(format!("{side}s {names:?}: expected names that end in {SEPARATOR}0 and so on, each number once"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(inputs: &[(&str, DataType)], forward: Option<&[(&str, Kind, bool)]>) -> Result<Call, String> {
        let inputs: Vec<TensorSpec> = inputs.iter().map(|(name, datatype)| TensorSpec::new(*name, *datatype, [-1])).collect();
        let forward: Option<Vec<Argument>> = forward.map(|arguments| {
            let argument = |(name, kind, is_optional): &(&str, Kind, bool)| Argument {
                name: (*name).to_owned(),
                kind: kind.clone(),
                is_optional: *is_optional,
            };
            arguments.iter().map(argument).collect()
        });
        call(&inputs, forward.as_deref())
    }

    fn tensors(order: &[usize]) -> Result<Call, String> {
        Ok(Call::Each(order.iter().map(|input| (*input, Kind::Tensor)).collect()))
    }

    #[test]
    fn numbers_come_before_names_and_names_before_the_order() {
        use DataType::Fp32;
        let two = [("a", Kind::Tensor, false), ("b", Kind::Tensor, false)];
        let numbered = [("INPUT__2", Fp32), ("INPUT__0", Fp32), ("INPUT__1", Fp32)];
        assert_eq!(check(&numbered, None), tensors(&[1, 2, 0]));
        assert_eq!(check(&[("x__1", Fp32), ("x__0", Fp32)], Some(&two)), tensors(&[1, 0]));
        assert_eq!(check(&[("b", Fp32), ("a", Fp32)], Some(&two)), tensors(&[1, 0]));
        assert_eq!(check(&[("q", Fp32), ("p", Fp32)], Some(&two)), tensors(&[0, 1]));
        assert_eq!(check(&[("b", Fp32), ("a__0", Fp32)], None), tensors(&[0, 1]));
        assert_eq!(
            check(&[("x__0", Fp32), ("x__2", Fp32)], None),
            Err(r#"inputs ["x__0", "x__2"]: expected names that end in __0 and so on, each number once"#.into())
        );
    }

    #[test]
    fn a_declaration_has_to_fit_forward() {
        use DataType::{Bool, Fp32, Int64};
        let forward = [("x", Kind::Tensor, false), ("sr", Kind::Int, false), ("loud", Kind::Bool, true)];
        let call = |call: &[(usize, Kind)]| Ok(Call::Each(call.to_vec()));
        assert_eq!(check(&[("sr", Int64), ("x", Fp32)], Some(&forward)), call(&[(1, Kind::Tensor), (0, Kind::Int)]));
        let all = [("x", Fp32), ("sr", Int64), ("loud", Bool)];
        assert_eq!(check(&all, Some(&forward)), call(&[(0, Kind::Tensor), (1, Kind::Int), (2, Kind::Bool)]));
        let takes = "forward takes x: Tensor, sr: int, loud: bool";
        assert_eq!(check(&[("x", Fp32)], Some(&forward)), Err(format!(r#"inputs ["x"] are declared, but {takes}"#)));
        assert_eq!(
            check(&[("x", Fp32), ("loud", Bool)], Some(&forward)),
            Err(format!(r#"inputs ["x", "loud"] are declared, but {takes}"#))
        );
        assert_eq!(
            check(&[("x", Fp32), ("sr", Fp32)], Some(&forward)),
            Err("input 'sr' of FP32 can't be forward's argument sr: int".into())
        );
        let two = [("a", Kind::Tensor, false), ("b", Kind::Tensor, false)];
        assert_eq!(
            check(&[("b", Fp32), ("x", Fp32)], Some(&two)),
            Err("input 'b' is declared as number 0, but forward takes a: Tensor, b: Tensor".into())
        );
        assert_eq!(check(&[("p", Fp32), ("q", Fp32)], Some(&[("all", Kind::Tensors, false)])), Ok(Call::List(vec![0, 1])));
        assert_eq!(check(&[("p", Fp32)], Some(&[("all", Kind::NamedTensors, false)])), Ok(Call::Dictionary));
    }

    #[test]
    fn what_libtorch_lacks_is_named() {
        let spec = |datatype| vec![TensorSpec::new("x", datatype, [-1])];
        let declared = Signature { inputs: spec(DataType::Bytes), outputs: spec(DataType::Fp32), batch_axis: None };
        let options = LoadOptions { entrypoint: "model.pt".into(), declared: Some(declared), ..LoadOptions::default() };
        assert_eq!(
            place(&options, None).unwrap_err().to_string(),
            "input 'x': libtorch has no BYTES, expected one of BOOL, UINT8, INT8, INT16, INT32, INT64, FP16, FP32, FP64, BF16"
        );
        let nothing = LoadOptions { entrypoint: "model.pt".into(), ..LoadOptions::default() };
        let forward = [Argument { name: "x".into(), kind: Kind::Tensor, is_optional: false }];
        let said = place(&nothing, Some(&forward)).unwrap_err().to_string();
        assert!(
            said.starts_with(
                "model.pt: a TorchScript file does not say what it takes and gives (forward takes x: Tensor); declare"
            ),
            "{said}"
        );
    }
}
