#![allow(missing_docs)]
#[derive(Clone, Debug, PartialEq)]
pub struct SamplingParams {
    pub temperature: f32,
    pub top_k: u32,
    pub top_p: f32,
    pub min_p: f32,
    pub repetition_penalty: f32,
    pub presence_penalty: f32,
    pub frequency_penalty: f32,
    pub logprobs: Option<u32>,
    pub logit_bias: Vec<(u32, f32)>,
}
impl Default for SamplingParams {
    fn default() -> Self {
        Self {
            temperature: 1.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            logprobs: None,
            logit_bias: vec![],
        }
    }
}
impl SamplingParams {
    pub fn validate(&self, _v: usize) -> Result<(), scone_model::Error> {
        Ok(())
    }
}
pub struct Sampled {
    pub id: u32,
    pub logprob: Option<f32>,
    pub top_logprobs: Vec<(u32, f32)>,
}
pub struct Sampler;
impl Sampler {
    pub fn new(_p: SamplingParams, _seed: u64, _ids: &[u32]) -> Self {
        Self
    }
    pub fn sample(&mut self, l: &mut [f32]) -> Result<Sampled, scone_model::Error> {
        let id = (0..l.len())
            .max_by(|a, b| l[*a].total_cmp(&l[*b]))
            .unwrap_or(0) as u32;
        Ok(Sampled {
            id,
            logprob: None,
            top_logprobs: vec![],
        })
    }
}
