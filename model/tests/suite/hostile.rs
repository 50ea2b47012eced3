//! Weights that are damaged, missing, or not those of their config.
use crate::checkpoint::save_scone;
use crate::common::{embeddings, parameters, values};
use candle_core::{Device, Tensor};
use scone_model::checkpoint::{
    StoredDtype, load_model_dir, read_parameters, save_model_dir, write_parameters,
};
use scone_model::{Decoder, Error, Parameters, SconeConfig};

#[test]
fn weights_that_are_not_those_of_scone_json_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let config = crate::common::llama(true);
    save_scone(dir.path(), &config);
    let mut main = parameters(&config);
    let table = &main["model.embed_tokens.weight"];
    let changed = (table * 1.001).unwrap();
    main.insert("model.embed_tokens.weight".into(), changed);
    let path = dir.path().join("model.safetensors");
    write_parameters(&path, &main, StoredDtype::F32).unwrap();
    let error = load_model_dir(dir.path(), &Device::Cpu).unwrap_err();
    assert!(error.to_string().contains("scone.json"), "{error}");
}

#[test]
fn missing_and_misshapen_tensors_are_named() {
    let config = crate::common::llama(true);
    let mut main = parameters(&config);
    let name = "model.layers.1.mlp.up_proj.weight";
    let load = |main: &Parameters| {
        let vb = crate::common::builder(main, candle_core::DType::F32);
        Decoder::load(&config, vb).unwrap_err()
    };
    main.insert(name.into(), embeddings(&[16, 20], 0.1));
    let error = load(&main);
    assert!(matches!(&error, Error::TensorShape { name: n, .. } if n == name));
    main.remove(name);
    assert!(matches!(load(&main), Error::MissingTensor { name: n } if n == name));
}

#[test]
fn truncated_and_flipped_files_do_no_harm() {
    let dir = tempfile::tempdir().unwrap();
    let config = crate::common::llama(true);
    save_scone(dir.path(), &config);
    for file in ["model.safetensors", "fgram_model.safetensors"] {
        let path = dir.path().join(file);
        let bytes = std::fs::read(&path).unwrap();
        for len in (0..bytes.len()).step_by(bytes.len() / 40) {
            std::fs::write(&path, &bytes[..len]).unwrap();
            assert!(load_model_dir(dir.path(), &Device::Cpu).is_err(), "{len}");
        }
        // In the header anything may change; it must end in a model or an error.
        for i in (0..bytes.len().min(3000)).step_by(7) {
            let mut flipped = bytes.clone();
            flipped[i] ^= 1 << (i % 8);
            std::fs::write(&path, &flipped).unwrap();
            let _ = load_model_dir(dir.path(), &Device::Cpu);
        }
        std::fs::write(&path, &bytes).unwrap();
    }
    assert!(load_model_dir(dir.path(), &Device::Cpu).is_ok());
    for file in ["config.json", SconeConfig::FILE] {
        let path = dir.path().join(file);
        let text = std::fs::read_to_string(&path).unwrap();
        for len in (0..text.len() - 2).step_by(13) {
            std::fs::write(&path, &text[..len]).unwrap();
            assert!(load_model_dir(dir.path(), &Device::Cpu).is_err(), "{len}");
        }
        std::fs::write(&path, text).unwrap();
    }
}

#[test]
fn a_huge_length_in_the_header_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.safetensors");
    let header = r#"{"a":{"dtype":"F32","shape":[4611686018427387904],"data_offsets":[0,4]}}"#;
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.bytes());
    bytes.extend([0; 4]);
    std::fs::write(&path, &bytes).unwrap();
    assert!(read_parameters(&path, &Device::Cpu).is_err());
    std::fs::write(&path, u64::MAX.to_le_bytes()).unwrap();
    assert!(read_parameters(&path, &Device::Cpu).is_err());
}

/// Shapes are compared with the config before a number is read: what does not fit costs no memory.
#[test]
fn numbers_that_are_none_and_headers_that_lie_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let config = crate::common::llama(true);
    let name = "model.layers.1.mlp.up_proj.weight";
    let load_with = |change: &dyn Fn(&mut Parameters)| {
        let mut main = parameters(&config);
        change(&mut main);
        save_model_dir(dir.path(), &config, &main, None).unwrap();
        load_model_dir(dir.path(), &Device::Cpu)
    };
    for bad in [f32::NAN, f32::INFINITY] {
        let error = load_with(&|main| {
            let mut numbers = values(&main[name]);
            numbers[17] = bad;
            let tensor = Tensor::from_vec(numbers, main[name].dims(), &Device::Cpu).unwrap();
            main.insert(name.into(), tensor);
        });
        let error = error.unwrap_err().to_string();
        assert!(
            error.contains(name) && error.contains("element 17"),
            "{error}"
        );
    }
    let error = load_with(&|main| {
        main.insert(name.into(), embeddings(&[16, 20], 0.1));
    });
    assert!(matches!(error, Err(Error::TensorShape { name: n, .. }) if n == name));
    let error = load_with(&|main| {
        main.remove(name);
    });
    assert!(matches!(error, Err(Error::MissingTensor { name: n }) if n == name));
    // A tensor that no model asks for is left alone.
    assert!(
        load_with(&|main| {
            let nan = Tensor::full(f32::NAN, 3, &Device::Cpu).unwrap();
            main.insert("model.layers.0.self_attn.rotary_emb.inv_freq".into(), nan);
        })
        .is_ok()
    );
}

#[test]
fn offsets_that_overlap_or_leave_the_file_are_errors() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.safetensors");
    let tensors = [
        (
            r#""a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}"#,
            12,
        ),
        (r#""a":{"dtype":"F32","shape":[2],"data_offsets":[8,0]}"#, 8),
        (r#""a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}"#, 4),
        (
            r#""a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}"#,
            12,
        ),
        (r#""a":{"dtype":"F32","shape":[3],"data_offsets":[0,8]}"#, 8),
    ];
    for (tensors, data) in tensors {
        let header = format!("{{{tensors}}}");
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend(header.bytes());
        bytes.resize(bytes.len() + data, 0);
        std::fs::write(&path, &bytes).unwrap();
        let error = read_parameters(&path, &Device::Cpu).unwrap_err();
        assert!(error.to_string().contains("header"), "{error}");
    }
}
