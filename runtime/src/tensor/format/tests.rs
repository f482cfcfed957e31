//! What each format does to values, against `half`'s software and against the stated bounds.

use half::{bf16, f16};
use proptest::prelude::*;

use super::*;

/// Values of ordinary size, of any size, and any bits at all.
fn value() -> impl Strategy<Value = f32> {
    prop_oneof![
        8 => -1e3f32..1e3,
        4 => any::<f32>(),
        1 => any::<u32>().prop_map(f32::from_bits),
    ]
}

/// Lengths around none, one and two blocks of int8 and steps of fp16.
fn values() -> impl Strategy<Value = Vec<f32>> {
    prop_oneof![0usize..20, 250usize..260, 1020usize..1030, 2040usize..2100]
        .prop_flat_map(|len| prop::collection::vec(value(), len))
}

fn encoded(format: WireFormat, values: &[f32]) -> Vec<u8> {
    let mut bytes = vec![0xa5; format.encoded_len(values.len())];
    format.encode_into(values, &mut bytes).unwrap();
    bytes
}

fn decoded(format: WireFormat, bytes: &[u8], len: usize) -> Vec<f32> {
    let mut values = vec![77.0; len];
    format.decode_into(bytes, &mut values).unwrap();
    values
}

fn round_trip(format: WireFormat, values: &[f32]) -> Vec<f32> {
    decoded(format, &encoded(format, values), values.len())
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

/// The bits that a value has on every machine; of a NaN the standard leaves them open.
fn bits_but_of_nan(values: &[f32]) -> Vec<Option<u32>> {
    values.iter().map(|value| (!value.is_nan()).then(|| value.to_bits())).collect()
}

fn halves(bytes: &[u8]) -> impl Iterator<Item = u16> {
    bytes.as_chunks::<2>().0.iter().map(|&pair| u16::from_le_bytes(pair))
}

#[test]
fn codes_on_the_wire_stay_what_they_are() {
    let codes: Vec<_> = WireFormat::ALL.iter().map(|f| (f.code(), f.to_string())).collect();
    assert_eq!(
        codes,
        [(0, "f32".into()), (1, "bf16".into()), (2, "fp16".into()), (3, "int8".into())]
    );
    for format in WireFormat::ALL {
        assert_eq!(WireFormat::from_code(format.code()), Ok(format));
    }
    assert_eq!(WireFormat::from_code(4), Err(TensorError::UnknownFormat { code: 4 }));
}

#[test]
fn bytes_on_the_wire_stay_what_they_are() {
    let values = [1.0f32, -0.5, f32::NAN, 127.0, f32::NEG_INFINITY];
    let bytes = |format| encoded(format, &values);
    assert_eq!(bytes(WireFormat::F32)[..8], [0, 0, 0x80, 0x3f, 0, 0, 0, 0xbf]);
    assert_eq!(
        bytes(WireFormat::Bf16),
        [0x80, 0x3f, 0x00, 0xbf, 0xc0, 0x7f, 0xfe, 0x42, 0x80, 0xff]
    );
    assert_eq!(
        bytes(WireFormat::Fp16),
        [0x00, 0x3c, 0x00, 0xb8, 0x00, 0x7e, 0xf0, 0x57, 0x00, 0xfc]
    );
    // The scale 1.0, then the integers; -0.5 lies between 0 and -1, and 0 is the even one.
    assert_eq!(bytes(WireFormat::Int8), [0, 0, 0x80, 0x3f, 1, 0, 0x80, 127, 0x80]);
}

#[test]
fn lengths_follow_from_the_number_of_values() {
    for (values, int8) in
        [(0, 0), (1, 5), (1023, 1027), (1024, 1028), (1025, 1033), (2048, 2056), (2049, 2061)]
    {
        let lengths = WireFormat::ALL.map(|format| format.encoded_len(values));
        assert_eq!(lengths, [4 * values, 2 * values, 2 * values, int8]);
    }
    for format in WireFormat::ALL {
        assert_eq!(format.encoded_len(usize::MAX), usize::MAX);
        assert!(encoded(format, &[]).is_empty());
    }
}

#[test]
fn every_number_of_a_half_width_format_survives_it() {
    let all: Vec<u16> = (0..=u16::MAX).collect();
    let bytes: Vec<u8> = all.iter().flat_map(|half| half.to_le_bytes()).collect();
    for (format, of) in [
        (WireFormat::Bf16, (|half| bf16::from_bits(half).to_f32_const()) as fn(u16) -> f32),
        (WireFormat::Fp16, |half| f16::from_bits(half).to_f32_const()),
    ] {
        let values = decoded(format, &bytes, all.len());
        let expected: Vec<f32> = all.iter().map(|&half| of(half)).collect();
        assert_eq!(bits_but_of_nan(&values), bits_but_of_nan(&expected), "{format}");
        let back = decoded(format, &encoded(format, &values), all.len());
        assert_eq!(bits_but_of_nan(&back), bits_but_of_nan(&values), "{format}");
    }
}

#[test]
fn what_is_beyond_the_range_becomes_infinite_and_what_is_between_goes_to_the_even_one() {
    let [bf16, fp16] = [WireFormat::Bf16, WireFormat::Fp16];
    for (format, sent, received) in [
        (fp16, 65504.0f32, 65504.0f32),
        (fp16, 65519.99, 65504.0),
        (fp16, 65520.0, f32::INFINITY),
        (fp16, -1e30, f32::NEG_INFINITY),
        (fp16, 2049.0, 2048.0),
        (fp16, 2051.0, 2052.0),
        (fp16, 2e-8, 0.0),
        (fp16, 4e-8, 5.9604645e-8),
        (bf16, f32::MAX, f32::INFINITY),
        (bf16, 3.396e38, 3.3895314e38),
        (bf16, -3.3962e38, f32::NEG_INFINITY),
        (bf16, 257.0, 256.0),
        (bf16, 259.0, 260.0),
        (bf16, -0.0, -0.0),
    ] {
        let found = round_trip(format, &[sent])[0];
        assert_eq!(found.to_bits(), received.to_bits(), "{sent} as {format} became {found}");
    }
}

#[test]
fn a_nan_of_any_bits_arrives_as_nan() {
    let nans: Vec<f32> = (0..23)
        .flat_map(|bit| [0x7f80_0000 | 1 << bit, 0xff80_0000 | 1 << bit, 0x7fff_ffff, u32::MAX])
        .map(f32::from_bits)
        .collect();
    for format in WireFormat::ALL {
        assert!(round_trip(format, &nans).iter().all(|value| value.is_nan()), "{format}");
    }
}

#[test]
fn in_int8_what_is_not_finite_is_nan_and_its_neighbours_are_not_hurt() {
    let mut values: Vec<f32> = (0..3000).map(|at| (at as f32).sin()).collect();
    let clean = round_trip(WireFormat::Int8, &values);
    let holes = [5, 1030, 1031, 2999];
    for (at, hole) in holes.into_iter().zip([f32::NAN, f32::INFINITY, f32::NEG_INFINITY, -f32::NAN])
    {
        values[at] = hole;
    }
    let received = round_trip(WireFormat::Int8, &values);
    for (at, (found, clean)) in received.iter().zip(&clean).enumerate() {
        if holes.contains(&at) {
            assert!(found.is_nan(), "{at}");
        } else {
            assert!((found - clean).abs() < 0.01, "{at}");
        }
    }
    let nothing_finite = [f32::NAN, f32::INFINITY];
    assert!(round_trip(WireFormat::Int8, &nothing_finite).iter().all(|value| value.is_nan()));
}

#[test]
fn int8_takes_the_ends_of_the_range() {
    let mut end = f32::MAX;
    for _ in 0..1000 {
        let received = round_trip(WireFormat::Int8, &[end, -end, 0.0]);
        assert!(received.iter().all(|value| value.is_finite()), "{end}: {received:?}");
        assert!(received[0] == -received[1] && received[2] == 0.0);
        end = end.next_down();
    }
    for tiny in [1.4e-36, f32::MIN_POSITIVE, 1e-45, 0.0] {
        assert_eq!(round_trip(WireFormat::Int8, &[tiny, -tiny]), [0.0, 0.0]);
    }
    let small = round_trip(WireFormat::Int8, &[1.5e-36, -0.75e-36]);
    assert!(small[0] > 1.49e-36 && (small[1] + 0.75e-36).abs() < 1e-38);
}

#[test]
fn bytes_of_another_length_are_refused_and_nothing_is_touched() {
    for format in WireFormat::ALL {
        let right = format.encoded_len(1030);
        for wrong in [0, 1, right - 1, right + 1, 2 * right] {
            let expected =
                TensorError::EncodedLength { format, values: 1030, expected: right, found: wrong };
            let (mut bytes, mut values) = (vec![3u8; wrong], vec![2.0f32; 1030]);
            assert_eq!(format.encode_into(&values, &mut bytes), Err(expected.clone()));
            assert_eq!(format.decode_into(&bytes, &mut values), Err(expected.clone()));
            assert_eq!(format.add_decoded_into(&bytes, &mut values), Err(expected));
            assert!(bytes.iter().all(|&byte| byte == 3));
            assert!(values.iter().all(|&value| value == 2.0));
        }
    }
    let error = WireFormat::Int8.decode_into(&[0; 4], &mut [0.0]).unwrap_err();
    assert_eq!(error.to_string(), "1 values as int8 take 5 bytes, but there are 4");
}

proptest! {
    /// Error feedback saves what it had as int8 as f32.
    #[test]
    fn what_int8_gave_has_the_same_bytes_as_int8_again(values in values()) {
        // Beyond this a scale is rounded down, so that it gives no infinity.
        let values: Vec<f32> =
            values.into_iter().filter(|value| value.abs() < 3e38 || !value.is_finite()).collect();
        let once = encoded(WireFormat::Int8, &values);
        let again = encoded(WireFormat::Int8, &decoded(WireFormat::Int8, &once, values.len()));
        prop_assert_eq!(once, again);
    }

    #[test]
    fn f32_keeps_every_bit(values in values()) {
        prop_assert_eq!(bits(&round_trip(WireFormat::F32, &values)), bits(&values));
    }

    #[test]
    fn half_widths_have_the_same_bytes_with_and_without_the_processor_s_help(values in values()) {
        let of_bf16: Vec<u16> =
            values.iter().map(|&value| bf16::from_f32_const(value).to_bits()).collect();
        prop_assert_eq!(halves(&encoded(WireFormat::Bf16, &values)).collect::<Vec<_>>(), of_bf16);
        let of_fp16: Vec<u16> =
            values.iter().map(|&value| f16::from_f32_const(value).to_bits()).collect();
        prop_assert_eq!(halves(&encoded(WireFormat::Fp16, &values)).collect::<Vec<_>>(), of_fp16);
    }

    #[test]
    fn half_widths_keep_to_their_bounds(values in values()) {
        for (format, part, least, infinite_from) in [
            (WireFormat::Bf16, 256.0, 2f64.powi(-134), 3.3961e38),
            (WireFormat::Fp16, 2048.0, 2f64.powi(-25), 65520.0),
        ] {
            for (&sent, &found) in values.iter().zip(&round_trip(format, &values)) {
                if sent.is_nan() {
                    prop_assert!(found.is_nan());
                } else if found.is_infinite() {
                    prop_assert!(f64::from(sent.abs()) >= infinite_from, "{} {}", format, sent);
                    prop_assert_eq!(found.is_sign_negative(), sent.is_sign_negative());
                } else {
                    let bound = (f64::from(sent.abs()) / part).max(least);
                    let error = (f64::from(sent) - f64::from(found)).abs();
                    prop_assert!(error <= bound, "{} {} {}", format, sent, found);
                }
            }
        }
    }

    #[test]
    fn int8_keeps_to_its_bound(values in values()) {
        let received = round_trip(WireFormat::Int8, &values);
        for (sent, found) in values.chunks(1024).zip(received.chunks(1024)) {
            let finite = sent.iter().filter(|value| value.is_finite());
            let largest = finite.map(|&value| f64::from(value.abs())).fold(0.0, f64::max);
            let bound = if largest < 1.5e-36 { largest } else { largest / 254.0 * 1.0001 };
            for (&sent, &found) in sent.iter().zip(found) {
                prop_assert_eq!(sent.is_finite(), !found.is_nan());
                if sent.is_finite() {
                    let error = (f64::from(sent) - f64::from(found)).abs();
                    prop_assert!(error <= bound, "{} {} {}", sent, found, largest);
                }
            }
        }
    }

    #[test]
    fn adding_in_one_pass_gives_the_bits_of_decoding_and_adding(
        values in values(), seed in any::<u32>(),
    ) {
        for format in WireFormat::ALL {
            let bytes = encoded(format, &values);
            let mut sums: Vec<f32> =
                (0..values.len()).map(|at| (at as f32 + seed as f32).sin() * 100.0).collect();
            let received = decoded(format, &bytes, values.len());
            let expected: Vec<f32> = sums.iter().zip(&received).map(|(a, b)| a + b).collect();
            format.add_decoded_into(&bytes, &mut sums).unwrap();
            prop_assert_eq!(bits_but_of_nan(&sums), bits_but_of_nan(&expected), "{}", format);
        }
    }

    #[test]
    fn any_bytes_of_the_right_length_are_values_wherever_they_lie(
        len in prop_oneof![0usize..20, 1020usize..1030],
        noise in prop::collection::vec(any::<u8>(), 5000),
        offset in 0usize..5,
    ) {
        for format in WireFormat::ALL {
            let bytes = &noise[offset..offset + format.encoded_len(len)];
            let values = decoded(format, bytes, len);
            let mut sums = vec![-0.0; len];
            format.add_decoded_into(bytes, &mut sums).unwrap();
            prop_assert_eq!(bits_but_of_nan(&sums), bits_but_of_nan(&values), "{}", format);
            let mut askew = vec![0; bytes.len() + offset];
            format.encode_into(&values, &mut askew[offset..]).unwrap();
            prop_assert_eq!(&encoded(format, &values), &askew[offset..]);
        }
    }
}
