//! A small test harness, for test programs that are started again as child, session or daemon: the usual one would read their
//! arguments as its own.

/// Runs the cases that the command line names by a part of their name, or all. Speaks what cargo and nextest ask for.
#[expect(clippy::print_stdout, reason = "who runs tests reads it")]
pub fn run<C>(cases: impl IntoIterator<Item = (&'static str, C)>, run: impl Fn(&str, C)) {
    let args: Vec<String> = std::env::args_os()
        .skip(1)
        .map(|arg| arg.to_string_lossy().into_owned())
        .collect();
    let has = |flag: &str| args.iter().any(|arg| arg == flag);
    let cases = cases.into_iter();
    if has("--list") {
        // None is marked as ignored.
        for (name, _) in cases.filter(|_| !has("--ignored")) {
            println!("{name}: test");
        }
        return;
    }
    let wanted: Vec<&String> = args.iter().filter(|arg| !arg.starts_with('-')).collect();
    let mut passed = 0;
    for (name, case) in cases {
        if wanted.is_empty() || wanted.iter().any(|part| name.contains(part.as_str())) {
            run(name, case);
            println!("test {name} ... ok");
            passed += 1;
        }
    }
    println!("test result: ok. {passed} passed; 0 failed; 0 ignored; 0 measured; 0 filtered out");
}
