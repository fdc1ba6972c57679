//! PyTorch tensors as slices: pointer, length and type, checked, without copying.
//!
//! A [`Tensor`] holds a reference to the Python object, which keeps the storage alive while Rust reads or writes it, also
//! without the GIL. Nothing stops another Python thread from writing to the same tensor meanwhile, as with PyTorch's own
//! kernels; values are plain numbers, so the worst that comes of it is a wrong number.

use half::{bf16, f16};
use pyo3::{
    exceptions::{PyTypeError, PyValueError},
    intern,
    prelude::*,
};

/// The types of floating-point tensors that can be read and written.
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

/// The elements of a tensor of floats. Whoever holds it keeps the [`Tensor`] that it came from.
#[derive(Clone, Copy)]
pub(crate) struct Floats {
    ptr: *mut u8,
    len: usize,
    dtype: Float,
}

// SAFETY: the memory belongs to a tensor that the caller keeps alive; see the module for writes at the same time.
unsafe impl Send for Floats {}
// SAFETY: as above.
unsafe impl Sync for Floats {}

impl<'py> Tensor<'py> {
    /// The tensor `object`, called `name` in errors.
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

    /// Elements.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Its elements as floats.
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

    /// Its elements, of the type whose name in torch is `dtype`.
    ///
    /// # Safety
    /// `T` is a type of plain numbers, of the size of what `dtype` names; see the module for writes at the same time.
    pub(crate) unsafe fn slice<T>(&self, name: &str, dtype: &str) -> PyResult<&[T]> {
        self.check_dtype(name, dtype)?;
        if self.len == 0 {
            return Ok(&[]);
        }
        // SAFETY: a contiguous tensor of this type has as many elements there, and the object keeps them alive.
        Ok(unsafe { std::slice::from_raw_parts(self.ptr.cast(), self.len) })
    }

    /// The same, to be written.
    ///
    /// # Safety
    /// As [`Tensor::slice`], and nobody else uses the elements meanwhile.
    pub(crate) unsafe fn slice_mut<T>(&mut self, name: &str, dtype: &str) -> PyResult<&mut [T]> {
        self.check_dtype(name, dtype)?;
        if self.len == 0 {
            return Ok(&mut []);
        }
        // SAFETY: as in `slice`.
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
    /// Elements.
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
    /// The tensor is alive, and parts that are alive at the same time do not overlap.
    #[allow(clippy::mut_from_ref)]
    pub(crate) unsafe fn f32_mut(&self, start: usize, len: usize) -> &mut [f32] {
        self.check(start, len);
        assert_eq!(self.dtype, Float::F32);
        // SAFETY: inside the tensor, says the check.
        unsafe { std::slice::from_raw_parts_mut(self.ptr.cast::<f32>().add(start), len) }
    }

    /// Reads elements from `start` on as f32.
    ///
    /// # Safety
    /// The tensor is alive.
    pub(crate) unsafe fn read(&self, start: usize, out: &mut [f32]) {
        self.check(start, out.len());
        let n = out.len();
        // SAFETY: inside the tensor, says the check.
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
    /// The tensor is alive, and nobody else touches these elements.
    pub(crate) unsafe fn write(&self, start: usize, values: &[f32]) {
        self.check(start, values.len());
        let n = values.len();
        // SAFETY: inside the tensor, says the check.
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
