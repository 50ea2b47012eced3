// The update of a parameter and the norm of a gradient on a GPU. Compiled by NVRTC when they are first used.

// First and second moment, `n` numbers each and one behind the other, take in the gradient.
extern "C" __global__ void take_in(
    float* both, const float* grad, long long n, float clip, float beta1, float beta2) {
    const long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    const float g = grad[i] * clip;
    both[i] = both[i] * beta1 + g * (1.0f - beta1);
    both[n + i] = both[n + i] * beta2 + g * g * (1.0f - beta2);
}

// A parameter moves by its moments.
extern "C" __global__ void move(
    float* param, const float* both, long long n, float decay, float rate, float second_scale, float eps) {
    const long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    const float root = sqrtf(both[n + i] * second_scale) + eps;
    param[i] = param[i] * decay - both[i] * rate / root;
}

// Sums of squares of chunks of `chunk` numbers, one a block of 256 threads: the same in every run.
extern "C" __global__ void squares(double* sums, const float* grad, long long n, int chunk) {
    __shared__ double of_threads[256];
    const long long begin = (long long)blockIdx.x * chunk;
    const long long end = begin + chunk < n ? begin + chunk : n;
    double sum = 0.0;
    for (long long i = begin + threadIdx.x; i < end; i += 256) sum += (double)grad[i] * (double)grad[i];
    of_threads[threadIdx.x] = sum;
    __syncthreads();
    for (int half = 128; half > 0; half /= 2) {
        if (threadIdx.x < half) of_threads[threadIdx.x] += of_threads[threadIdx.x + half];
        __syncthreads();
    }
    if (threadIdx.x == 0) sums[blockIdx.x] = of_threads[0];
}
