//! PyTorch tensors as slices, without copies: pointer, length and dtype are checked.
//!
//! A [`Tensor`] holds a reference to the Python object, which keeps the storage alive, with and without the GIL. As
//! with PyTorch's kernels, callers must not write to a tensor from another thread during a call. The elements are plain
//! numbers.

use half::{bf16, f16};
use pyo3::{
    exceptions::{PyTypeError, PyValueError},
    intern,
    prelude::*,
};

/// The supported floating-point types.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Float {
    F32,
    Bf16,
    F16,
}

/// A contiguous CPU tensor.
pub(crate) struct Tensor<'py> {
    object: Bound<'py, PyAny>,
    ptr: *mut u8,
    len: usize,
}

/// The elements of a tensor of floats. It must not outlive the [`Tensor`] that made it.
#[derive(Clone, Copy)]
pub(crate) struct Floats {
    ptr: *mut u8,
    len: usize,
    dtype: Float,
}

// SAFETY: the memory belongs to a tensor and not to a thread; its methods state who may use the elements.
unsafe impl Send for Floats {}
// SAFETY: shared access reads pointer, length and type only; the methods state who may use the elements.
unsafe impl Sync for Floats {}

impl<'py> Tensor<'py> {
    /// The tensor `object`. Errors call it `name`.
    pub(crate) fn new(object: &Bound<'py, PyAny>, name: &str) -> PyResult<Self> {
        let py = object.py();
        let is_cpu = object.getattr(intern!(py, "is_cpu")).and_then(|v| v.extract::<bool>());
        let Ok(is_cpu) = is_cpu else {
            let got = object.get_type().name()?;
            return Err(PyTypeError::new_err(format!("{name} must be a torch.Tensor, not {got}")));
        };
        if !is_cpu {
            let device = object.getattr(intern!(py, "device"))?.str()?;
            return Err(PyValueError::new_err(format!(
                "{name} is on {device}; scrimp's kernels run on the CPU: move it with .cpu()"
            )));
        }
        if !object.call_method0(intern!(py, "is_contiguous"))?.extract::<bool>()? {
            return Err(PyValueError::new_err(format!("{name} must be contiguous: call .contiguous()")));
        }
        let ptr = object.call_method0(intern!(py, "data_ptr"))?.extract::<usize>()?;
        let len = object.call_method0(intern!(py, "numel"))?.extract::<usize>()?;
        if ptr == 0 && len > 0 {
            return Err(PyValueError::new_err(format!("{name} has no memory (a meta or fake tensor?)")));
        }
        Ok(Self { object: object.clone(), ptr: ptr as *mut u8, len })
    }

    fn dtype(&self) -> PyResult<Bound<'py, PyAny>> {
        self.object.getattr(intern!(self.object.py(), "dtype"))
    }

    fn wrong_dtype(&self, name: &str, wanted: &str) -> PyErr {
        let got = self.dtype().map_or_else(|e| e.to_string(), |d| d.to_string());
        PyTypeError::new_err(format!("{name} must be {wanted}, not {got}"))
    }

    /// The number of elements.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// The elements as floats.
    pub(crate) fn floats(&self, name: &str) -> PyResult<Floats> {
        let py = self.object.py();
        let dtype = self.dtype()?;
        let types = float_types(py)?;
        let at = types.iter().position(|t| t.bind(py).is(&dtype));
        let dtype = match at {
            Some(0) => Float::F32,
            Some(1) => Float::Bf16,
            Some(2) => Float::F16,
            _ => return Err(self.wrong_dtype(name, "float32, bfloat16 or float16")),
        };
        Ok(Floats { ptr: self.ptr, len: self.len, dtype })
    }

    fn check_dtype(&self, name: &str, dtype: &str) -> PyResult<()> {
        let torch = self.object.py().import(intern!(self.object.py(), "torch"))?;
        if self.dtype()?.is(&torch.getattr(dtype)?) { Ok(()) } else { Err(self.wrong_dtype(name, dtype)) }
    }

    /// The elements, whose type in torch is `dtype`.
    ///
    /// # Safety
    /// `T` is a type of numbers of the size of `dtype`, and no code writes to the elements while the slice lives.
    pub(crate) unsafe fn slice<T>(&self, name: &str, dtype: &str) -> PyResult<&[T]> {
        self.check_dtype(name, dtype)?;
        if self.len == 0 {
            return Ok(&[]);
        }
        // SAFETY: `new` checked that the tensor is contiguous with `len` elements at `ptr`, `check_dtype` their type;
        // `object` keeps them alive. The caller rules out writes.
        Ok(unsafe { std::slice::from_raw_parts(self.ptr.cast(), self.len) })
    }

    /// The elements, mutable.
    ///
    /// # Safety
    /// `T` is a type of numbers of the size of `dtype`, and no other code uses the elements while the slice lives.
    pub(crate) unsafe fn slice_mut<T>(&mut self, name: &str, dtype: &str) -> PyResult<&mut [T]> {
        self.check_dtype(name, dtype)?;
        if self.len == 0 {
            return Ok(&mut []);
        }
        // SAFETY: `new` checked that the tensor is contiguous with `len` elements at `ptr`, `check_dtype` their type;
        // `object` keeps them alive. The caller rules out other uses.
        Ok(unsafe { std::slice::from_raw_parts_mut(self.ptr.cast(), self.len) })
    }
}

/// `torch.float32`, `bfloat16` and `float16`.
fn float_types(py: Python<'_>) -> PyResult<&'static [Py<PyAny>; 3]> {
    static TYPES: pyo3::sync::PyOnceLock<[Py<PyAny>; 3]> = pyo3::sync::PyOnceLock::new();
    TYPES.get_or_try_init(py, || {
        let torch = py.import("torch")?;
        let get = |name: &str| PyResult::Ok(torch.getattr(name)?.unbind());
        Ok([get("float32")?, get("bfloat16")?, get("float16")?])
    })
}

impl Floats {
    /// The number of elements.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// The type.
    pub(crate) fn dtype(&self) -> Float {
        self.dtype
    }

    fn check(&self, start: usize, len: usize) {
        assert!(start.checked_add(len).is_some_and(|end| end <= self.len), "part of a tensor");
    }

    /// Elements `start .. start + len` of a float32 tensor.
    ///
    /// # Safety
    /// The tensor is alive, and no other code uses these elements while the slice lives.
    #[allow(clippy::mut_from_ref)]
    pub(crate) unsafe fn f32_mut(&self, start: usize, len: usize) -> &mut [f32] {
        self.check(start, len);
        assert_eq!(self.dtype, Float::F32);
        // SAFETY: `check` ensures `start + len <= self.len`, the assertion the type; the caller guarantees the rest.
        unsafe { std::slice::from_raw_parts_mut(self.ptr.cast::<f32>().add(start), len) }
    }

    /// Reads elements from `start` on as f32.
    ///
    /// # Safety
    /// The tensor is alive.
    pub(crate) unsafe fn read(&self, start: usize, out: &mut [f32]) {
        self.check(start, out.len());
        let n = out.len();
        // SAFETY: `check` ensures `start + n <= self.len`, and `dtype` is the tensor's type; the caller keeps it alive.
        unsafe {
            match self.dtype {
                Float::F32 => {
                    out.copy_from_slice(std::slice::from_raw_parts(self.ptr.cast::<f32>().add(start), n));
                }
                Float::Bf16 => {
                    let x = std::slice::from_raw_parts(self.ptr.cast::<u16>().add(start), n);
                    for (out, &x) in out.iter_mut().zip(x) {
                        *out = f32::from_bits(u32::from(x) << 16);
                    }
                }
                Float::F16 => {
                    let x = std::slice::from_raw_parts(self.ptr.cast::<f16>().add(start), n);
                    out.iter_mut().zip(x).for_each(|(out, x)| *out = x.to_f32());
                }
            }
        }
    }

    /// Writes `values`, rounded, to the elements from `start` on.
    ///
    /// # Safety
    /// The tensor is alive, and no other code uses these elements during the call.
    pub(crate) unsafe fn write(&self, start: usize, values: &[f32]) {
        self.check(start, values.len());
        let n = values.len();
        // SAFETY: `check` ensures `start + n <= self.len`, and `dtype` is the tensor's type; the caller rules out other
        // uses.
        unsafe {
            match self.dtype {
                Float::F32 => {
                    std::slice::from_raw_parts_mut(self.ptr.cast::<f32>().add(start), n)
                        .copy_from_slice(values);
                }
                Float::Bf16 => {
                    let out = std::slice::from_raw_parts_mut(self.ptr.cast::<bf16>().add(start), n);
                    out.iter_mut().zip(values).for_each(|(out, &v)| *out = bf16::from_f32(v));
                }
                Float::F16 => {
                    let out = std::slice::from_raw_parts_mut(self.ptr.cast::<f16>().add(start), n);
                    out.iter_mut().zip(values).for_each(|(out, &v)| *out = f16::from_f32(v));
                }
            }
        }
    }
}
