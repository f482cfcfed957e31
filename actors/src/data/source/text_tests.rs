use std::fs;

use tempfile::TempDir;

use super::*;

fn file(text: &[u8]) -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("t");
    fs::write(&path, text).unwrap();
    (dir, path)
}

fn window(of: &dyn Source, index: usize) -> (Vec<i64>, Vec<i64>) {
    let sample = of.sample(index).unwrap();
    let tokens = |of: &footlight_runtime::HostTensor| of.as_slice::<i64>().unwrap().to_vec();
    (tokens(&sample.input), tokens(&sample.target))
}

fn refused(text: Text, dir: &TempDir) -> String {
    let text = text.open(Part::All).err().unwrap().to_string();
    assert!(!text.contains('\n'), "one line: {text}");
    text.replace(&format!("{}/", dir.path().display()), "")
}

#[test]
fn characters_are_numbered_in_their_order_for_the_whole_text_whatever_the_part() {
    let (_dir, path) = file("abcabéab".as_bytes());
    let text = Text::at(&path).block(3).stride(1);
    let all = text.open(Part::All).unwrap();
    assert_eq!((all.len(), window(&*all, 3)), (5, (vec![0, 1, 3], vec![1, 3, 0])));
    let last = text.open(Part::Last(0.5)).unwrap();
    assert_eq!((last.len(), window(&*last, 0)), (1, (vec![1, 3, 0], vec![3, 0, 1])));
    let given = Text::at(&path).block(3).alphabet("éabcx").open(Part::All).unwrap();
    assert_eq!(window(&*given, 1), (vec![1, 2, 0], vec![2, 0, 1]));
}

#[test]
fn lines_are_samples_of_unequal_length() {
    let (_dir, path) = file(b"ab\n\nbab\r\n \nb");
    let lines = Text::at(&path).lines().alphabet("ab\n\r").open(Part::All).unwrap();
    assert_eq!(lines.len(), 2, "what has no next token is left out");
    assert!(lines.input().is_ragged() && lines.target().is_ragged());
    assert_eq!(window(&*lines, 0), (vec![0, 1], vec![1, 2]));
    assert_eq!(window(&*lines, 1), (vec![1, 0, 1, 3], vec![0, 1, 3, 2]));
    assert!(lines.sample(2).is_err());
}

#[test]
fn what_is_no_text_or_not_of_the_alphabet_is_told() {
    let (dir, path) = file(b"ab\xff");
    assert!(refused(Text::at(&path), &dir).starts_with("t is no UTF-8 text file"));
    fs::write(&path, "abc").unwrap();
    assert_eq!(
        refused(Text::at(&path).alphabet("ab"), &dir),
        "t is no text file that can be read here: its character 'c' is not of the alphabet"
    );
    let told = refused(Text::at(&path).alphabet("aba"), &dir);
    assert!(told.ends_with("is empty or has a character twice"), "{told}");
    assert!(refused(Text::at(&path).block(3), &dir).contains("t has 3 tokens for this part"));
    fs::write(&path, "").unwrap();
    assert_eq!(refused(Text::at(&path), &dir), "t holds no sample");
    assert_eq!(refused(Text::at(&path).lines(), &dir), "t holds no sample");
}

#[cfg(not(feature = "tokenizers"))]
#[test]
fn a_tokenizer_without_its_feature_is_refused_with_the_features_name() {
    let (dir, path) = file(b"abc");
    let told = refused(Text::at(&path).tokenizer("tokenizer.json"), &dir);
    assert!(told.contains("needs the feature `tokenizers` of footlight"), "{told}");
}

#[cfg(feature = "tokenizers")]
#[test]
fn a_tokenizer_of_the_hub_makes_a_text_into_its_tokens() {
    let (dir, path) = file(b"the cat the dog");
    let json = r#"{"version":"1.0","truncation":null,"padding":null,"added_tokens":[],"normalizer":null,
        "pre_tokenizer":{"type":"Whitespace"},"post_processor":null,"decoder":null,
        "model":{"type":"WordLevel","vocab":{"[UNK]":0,"the":1,"cat":2},"unk_token":"[UNK]"}}"#;
    let tokenizer = dir.path().join("tokenizer.json");
    fs::write(&tokenizer, json).unwrap();
    let text = Text::at(&path).tokenizer(&tokenizer).block(3);
    assert_eq!(window(&*text.open(Part::All).unwrap(), 0), (vec![1, 2, 1], vec![2, 1, 0]));
    fs::write(&tokenizer, "{}").unwrap();
    assert!(refused(text, &dir).starts_with("tokenizer.json is no tokenizer file"));
}
