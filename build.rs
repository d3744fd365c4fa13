//! Reads the header and CPython's own for the layouts that Rust must share, and
//! compiles the little C there is. Without the `python` feature there is
//! nothing to do: `core` is Rust alone.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    #[cfg(feature = "python")]
    python::main();
}

#[cfg(feature = "python")]
mod python {
    use std::env;
    use std::path::{Path, PathBuf};
    use std::process::Command;

    use pyo3_build_config::InterpreterConfig;

    const C_SOURCES: [&str; 3] = ["src/interp/refcounts.c", "src/interp/thread_words.c", "src/workloads/kernels.c"];

    pub fn main() {
        pyo3_build_config::use_pyo3_cfgs();
        let config = pyo3_build_config::get();
        let python = Python::new(config);
        if python.buffered {
            println!("cargo:rustc-cfg=buffered");
        }
        for watched in ["include", "src/interp/layout.h", "src/workloads/kernels.h", "src/workloads/kernel_body.h"]
            .iter()
            .chain(&C_SOURCES)
        {
            println!("cargo:rerun-if-changed={watched}");
        }
        bind_layouts(&python);
        compile_c(&python);
    }

    /// What the build needs to know of the interpreter it builds for.
    struct Python {
        executable: String,
        include: PathBuf,
        /// Free-threaded, and without reference totals: attached threads buffer.
        buffered: bool,
    }

    impl Python {
        fn new(config: &InterpreterConfig) -> Python {
            let Some(executable) = config.executable.clone() else {
                panic!("refbuf reads the headers of the interpreter it is built for: set PYO3_PYTHON to it");
            };
            let include = ask(&executable, "import sysconfig; print(sysconfig.get_path('include'))");
            let gil_disabled = config.build_flags.0.iter().any(|flag| flag.to_string() == "Py_GIL_DISABLED");
            let ref_debug = config.build_flags.0.iter().any(|flag| flag.to_string() == "Py_REF_DEBUG");
            let include = PathBuf::from(include.expect("the interpreter says where its headers are"));
            assert!(
                include.join("Python.h").exists(),
                "there is no Python.h in {}: install the headers of {executable}",
                include.display()
            );
            Python { executable, include, buffered: gil_disabled && !ref_debug }
        }
    }

    /// What a line of Python prints; none if it fails.
    fn ask(executable: &str, line: &str) -> Option<String> {
        let output = Command::new(executable).args(["-c", line]).output().ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    }

    /// bindgen's libclang comes from PyPI's `libclang`, which the build
    /// requirements name; LIBCLANG_PATH overrides it.
    fn find_libclang(python: &Python) {
        println!("cargo:rerun-if-env-changed=LIBCLANG_PATH");
        if env::var_os("LIBCLANG_PATH").is_some() {
            return;
        }
        let line = "import clang, os; print(os.path.join(list(clang.__path__)[0], 'native'))";
        // With build isolation, the requirements are those of the python on PATH.
        let found = ["python3", "python", &python.executable].iter().find_map(|candidate| ask(candidate, line));
        if let Some(folder) = found.filter(|folder| Path::new(folder).is_dir()) {
            env::set_var("LIBCLANG_PATH", folder);
        }
    }

    /// PyPI's libclang has no headers of its own, such as stddef.h: borrow the
    /// C compiler's.
    fn compiler_headers() -> Option<String> {
        let compiler = cc::Build::new().get_compiler();
        let output = compiler.to_command().arg("-print-file-name=include").output().ok()?;
        let folder = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        Path::new(&folder).join("stddef.h").exists().then_some(folder)
    }

    fn bind_layouts(python: &Python) {
        find_libclang(python);
        let mut builder = bindgen::Builder::default()
            .header("src/interp/layout.h")
            .clang_arg("-Iinclude")
            .clang_arg(format!("-I{}", python.include.display()))
            .allowlist_type("RefBuf_.*")
            .allowlist_var("REFBUF_.*")
            .allowlist_var("refbuf_kernels_.*")
            .allowlist_function("refbuf_work")
            // pyo3 has it already, under that name.
            .blocklist_type("PyObject|_object")
            .raw_line("use pyo3::ffi::PyObject;")
            .derive_default(false)
            .layout_tests(true)
            .generate_comments(false);
        if let Some(folder) = compiler_headers() {
            builder = builder.clang_arg("-isystem").clang_arg(folder);
        }
        let bindings = builder.generate().expect("bindgen reads include/refbuf.h and Python.h");
        let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR")).join("layout.rs");
        bindings.write_to_file(out).expect("OUT_DIR can be written to");
    }

    fn compile_c(python: &Python) {
        cc::Build::new()
            .files(C_SOURCES)
            .include("include")
            .include(&python.include)
            .std("c11")
            .warnings(true)
            .extra_warnings(true)
            .flag("-Wundef")
            .flag_if_supported("-fno-semantic-interposition")
            // CPython's macros are measured as extensions get them: at -O2.
            .opt_level(2)
            .define("NDEBUG", None)
            .flag_if_supported("-fvisibility=hidden")
            .compile("refbuf_c");
    }
}
