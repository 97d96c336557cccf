//! The arguments of a chip callable against its signature, before anything of the submit exists.

use echelon_wire::callable::Direction;

use crate::args::TensorArg;
use crate::callable::Callable;
use crate::error::Error;
use crate::tensor::Tag;

/// Refuses arguments that the machine code does not take; other callables take any. Tensors are compared in their order with the
/// parameters that are tensors, scalars by their number.
pub(crate) fn check_signature(
    callable: &Callable,
    tensors: &[TensorArg],
    scalars: usize,
) -> Result<(), Error> {
    let Some(code) = callable.chip_code() else {
        return Ok(());
    };
    let refuse = |what: String| {
        let names: Vec<&str> = code.signature().iter().map(|d| d.name()).collect();
        Error::wrong_type(
            "args",
            format!("{} takes [{}], and {what}", callable.name, names.join(", ")),
        )
    };
    let wanted: Vec<Direction> = code
        .signature()
        .iter()
        .copied()
        .filter(|direction| *direction != Direction::Scalar)
        .collect();
    let scalars_wanted = code.signature().len() - wanted.len();
    if wanted.len() != tensors.len() {
        return Err(refuse(format!(
            "{} tensors were given for {}",
            tensors.len(),
            wanted.len()
        )));
    }
    if scalars_wanted != scalars {
        return Err(refuse(format!(
            "{scalars} scalars were given for {scalars_wanted}"
        )));
    }
    for (index, (direction, arg)) in wanted.iter().zip(tensors).enumerate() {
        if !fits(*direction, arg.tag) {
            return Err(refuse(format!(
                "tensor {index} is {} there, which a tensor tagged {} is not",
                direction.name(),
                arg.tag.name()
            )));
        }
    }
    Ok(())
}

/// A direction's tags are those with the same reads and writes, so that the graph orders what the machine code does.
fn fits(direction: Direction, tag: Tag) -> bool {
    match direction {
        Direction::In => tag == Tag::Input,
        Direction::Out => matches!(tag, Tag::Output | Tag::OutputExisting),
        Direction::InOut => tag == Tag::InOut,
        Direction::Scalar => false,
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use echelon_wire::tensor::{DataType, TensorMeta};

    use super::*;
    use crate::args::ArgSource;
    use crate::chip::ChipCode;

    fn arg(tag: Tag) -> TensorArg {
        TensorArg {
            meta: TensorMeta::new(&[4], DataType::Uint8).unwrap(),
            source: ArgSource::Inline(Bytes::from_static(&[0; 4])),
            tag,
        }
    }

    fn kernel() -> Callable {
        let signature = [
            Direction::In,
            Direction::Scalar,
            Direction::Out,
            Direction::InOut,
        ];
        let code = ChipCode::new("cpu", "r", &signature, Bytes::from_static(b"code")).unwrap();
        Callable::chip("axpy", code)
    }

    fn refusal(tags: &[Tag], scalars: usize) -> String {
        let args: Vec<TensorArg> = tags.iter().map(|tag| arg(*tag)).collect();
        let refused = check_signature(&kernel(), &args, scalars);
        refused.map_or_else(|error| error.to_string(), |()| String::new())
    }

    #[test]
    fn arguments_that_fit_are_taken() {
        assert_eq!(refusal(&[Tag::Input, Tag::Output, Tag::InOut], 1), "");
        assert_eq!(
            refusal(&[Tag::Input, Tag::OutputExisting, Tag::InOut], 1),
            ""
        );
    }

    #[test]
    fn what_does_not_fit_is_named() {
        for (tags, scalars, named) in [
            (
                vec![Tag::Input, Tag::Output],
                1,
                "2 tensors were given for 3",
            ),
            (
                vec![Tag::Input, Tag::Output, Tag::InOut],
                2,
                "2 scalars were given for 1",
            ),
            (
                vec![Tag::InOut, Tag::Output, Tag::InOut],
                1,
                "tensor 0 is IN there, which a tensor tagged INOUT",
            ),
            (
                vec![Tag::Input, Tag::Input, Tag::InOut],
                1,
                "tensor 1 is OUT there, which a tensor tagged INPUT",
            ),
            (
                vec![Tag::Input, Tag::Output, Tag::NoDep],
                1,
                "tensor 2 is INOUT there, which a tensor tagged NO_DEP",
            ),
        ] {
            let text = refusal(&tags, scalars);
            assert!(
                text.contains(named) && text.contains("axpy takes [IN, SCALAR, OUT, INOUT]"),
                "{text}"
            );
        }
    }

    #[test]
    fn other_callables_take_anything() {
        let native = Callable::native("n", |_| Ok(()));
        assert!(check_signature(&native, &[arg(Tag::NoDep)], 9).is_ok());
    }
}
