//! One execution of one native operation. Compiled beside each copy of the sources.

use super::attention::{Causal, Heads, HeadsMut};
use super::linear::{self, FactorGradients, Factors, Sizes};
use super::norm::Kind;
use super::product::{Shared, View};
use super::tile::{COLUMNS, Kernel, LANE, ROWS, Segment, Target};
use super::{head, transpose};
use crate::kernels::input::{Exact, Input, assert_close, assert_written, product, unwritten};

/// Multiplications of most executions, about, and of one in 32: enough to cross every block's edge, and to get on.
const WORK: [usize; 2] = [1 << 12, 1 << 17];

/// The kernel that this copy takes.
pub fn kernel() -> String {
    format!("{:?}", Kernel::best())
}

pub fn run(input: &mut Input<'_>) {
    let choice = input.byte();
    let work = WORK[usize::from(choice >= 248)];
    match choice % 8 {
        0 => tile(input),
        1 => columns(input),
        2 => norm(input, work),
        3 => loss(input, work),
        4 | 5 => attention(input, work),
        _ => layer(input, work),
    }
}

/// Where the first example's elements end, and whether any of them is no ordinary number.
type Spoilt = (usize, bool);

/// The elements of the other examples, which nothing in the first may change.
fn untouched<'a, T>(values: &'a [T], (first, spoilt): Spoilt) -> &'a [T] {
    if spoilt { &values[first..] } else { values }
}

fn exact(values: &[f32]) -> Vec<Exact> {
    values.iter().copied().map(Exact::of).collect()
}

fn tile(input: &mut Input<'_>) {
    let (rows, panel) = (input.up_to(ROWS), if input.flag() { COLUMNS } else { LANE });
    let (width, add) = (input.up_to(panel), input.flag());
    let count = input.up_to(2);
    let inners: Vec<usize> = (0..count).map(|_| input.size(&[], 70)).collect();
    let strides: Vec<usize> = (0..count).map(|_| panel + input.up_to(3) - 1).collect();
    let lefts: Vec<Vec<f32>> = inners
        .iter()
        .map(|inner| input.values(inner.next_multiple_of(LANE) * rows))
        .collect();
    let rights: Vec<Vec<f32>> = inners
        .iter()
        .zip(&strides)
        .map(|(inner, stride)| input.values((inner - 1) * stride + panel))
        .collect();
    let stride = width + input.up_to(4) - 1;
    let start = input.values((rows - 1) * stride + width);
    let segments: Vec<Segment> = (0..count)
        .map(|part| Segment {
            left: lefts[part].as_ptr(),
            right: rights[part].as_ptr(),
            stride: strides[part],
            inner: inners[part],
        })
        .collect();
    let mut out = start.clone();
    let to = Target {
        start: out.as_mut_ptr(),
        stride,
        width,
        add,
    };
    // SAFETY: operands and result are as large as described.
    unsafe { Kernel::best().run(rows, panel, &segments, to) };
    let mut expected = exact(&start);
    for row in 0..rows {
        for column in 0..width {
            let mut sum = Exact::default();
            if add {
                sum = expected[row * stride + column];
            }
            for part in 0..count {
                for k in 0..inners[part] {
                    let left = lefts[part][(k / LANE * rows + row) * LANE + k % LANE];
                    let right = rights[part][k * strides[part] + column];
                    sum.add(Exact::of(left).times(Exact::of(right)));
                }
            }
            expected[row * stride + column] = sum;
        }
    }
    assert_close(&out, &expected, 5e-5, "tile");
}

fn columns(input: &mut Input<'_>) {
    let width = LANE * input.up_to(2);
    let stride = LANE + input.size(&[], 70) - 1;
    let source = input.values((width - 1) * stride + LANE);
    let mut out = unwritten(LANE * width);
    if transpose::columns(&source, stride, &mut out) {
        for (index, value) in out.iter().enumerate() {
            let (k, column) = (index / width, index % width);
            assert_eq!(*value, source[column * stride + k]);
        }
    }
}

fn norm(input: &mut Input<'_>, work: usize) {
    let width = input.size(&[127, 129, 1023, 16_384, 16_385], work);
    let rows = input.size(&[130], work / width);
    let mut x = input.values(rows * width);
    let spoilt = (width, input.spoil(&mut x, width));
    let (weight, bias) = (input.values(width), input.values(width));
    let (kind, layer) = match input.flag() {
        true => (Kind::Layer { epsilon: 1e-5 }, true),
        false => (Kind::RootMeanSquare { epsilon: 1e-6 }, false),
    };
    let mut y = unwritten(x.len());
    kind.forward(&x, &weight, &bias, Shared::new(&mut y));
    assert_written(&y, "norm");
    let grad = input.values(x.len());
    let mut x_grad = grad.clone();
    kind.backward(&x, &weight, &mut x_grad);
    let (mut y_exact, mut grad_exact) = (Vec::new(), Vec::new());
    let size = width as f64;
    for (x, grad) in x.chunks_exact(width).zip(grad.chunks_exact(width)) {
        let x: Vec<f64> = x.iter().map(|x| f64::from(*x)).collect();
        let mean = if layer {
            x.iter().sum::<f64>() / size
        } else {
            0.0
        };
        let square = x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / size;
        let inverse = 1.0 / (square + if layer { 1e-5 } else { 1e-6 }).sqrt();
        let u: Vec<f64> = grad
            .iter()
            .zip(&weight)
            .map(|(grad, weight)| f64::from(*grad) * f64::from(*weight))
            .collect();
        let centre = if layer {
            u.iter().sum::<f64>() / size
        } else {
            0.0
        };
        let dot = u.iter().zip(&x).map(|(u, x)| u * (x - mean) * inverse);
        let dot = dot.sum::<f64>() / size;
        let largest = x.iter().fold(0.0_f64, |largest, x| largest.max(x.abs()));
        // A row of nearly equal numbers: what is left of them after the mean is rounding, times this.
        let steep = 1.0 + largest * inverse;
        for (index, x) in x.iter().enumerate() {
            let h = (x - mean) * inverse;
            let (weight, bias) = (f64::from(weight[index]), f64::from(bias[index]));
            y_exact.push(Exact {
                value: h * weight + if layer { bias } else { 0.0 },
                size: steep * weight.abs() + bias.abs() + 1e-6,
            });
            grad_exact.push(Exact {
                value: (u[index] - centre - h * dot) * inverse,
                size: 5.0 * inverse * steep * steep,
            });
        }
    }
    for (found, expected, what) in [
        (&y, y_exact, "norm"),
        (&x_grad, grad_exact, "norm's gradient"),
    ] {
        let expected = untouched(&expected, spoilt);
        assert_close(untouched(found, spoilt), expected, 2e-5, what);
    }
}

fn loss(input: &mut Input<'_>, work: usize) {
    let width = input.size(&[], 70);
    let words = input.size(&[511, 512, 513, 1025], work / width);
    let count = input.size(&[111, 112, 113, 141], work / width / words);
    let count = count * usize::from(input.byte() % 16 != 0);
    let mut rows = input.values(count * width);
    let spoilt = input.spoil(&mut rows, width.min(count * width));
    let projection = input.values(words * width);
    let targets: Vec<u32> = (0..count)
        .map(|row| ((row * 37 + usize::from(input.byte())) % words) as u32)
        .collect();
    let weights = input.values(count);
    let mut losses = unwritten(count);
    let mut grads = unwritten(count * width);
    let wanted = input.flag();
    let shared = wanted.then(|| Shared::new(&mut grads));
    head::losses(
        &rows,
        &projection,
        width,
        &targets,
        &weights,
        &mut losses,
        shared,
    );
    assert_written(&losses, "losses");
    let (row, word) = (exact(&rows), exact(&projection));
    let logits = product(
        [count, width, words],
        |r, k| row[r * width + k],
        |k, w| word[w * width + k],
    );
    let (mut losses_exact, mut grads_exact) = (Vec::new(), Vec::new());
    for (row, logits) in logits.chunks_exact(words).enumerate() {
        let target = targets[row] as usize;
        let size = logits
            .iter()
            .fold(1.0_f64, |size, logit| size.max(logit.size));
        let largest = logits
            .iter()
            .fold(f64::NEG_INFINITY, |largest, logit| largest.max(logit.value));
        let powers: Vec<f64> = logits
            .iter()
            .map(|logit| (logit.value - largest).exp())
            .collect();
        let sum: f64 = powers.iter().sum();
        let weight = f64::from(weights[row]);
        losses_exact.push(Exact {
            value: weight * (largest + sum.ln() - logits[target].value),
            size: weight.abs() * (2.0 * size + sum.ln().abs() + 1.0),
        });
        for k in 0..width {
            let value = powers
                .iter()
                .enumerate()
                .map(|(w, power)| power / sum * word[w * width + k].value)
                .sum::<f64>();
            grads_exact.push(Exact {
                value: weight * (value - word[target * width + k].value),
                size: weight.abs() * 4.0 * (1.0 + size),
            });
        }
    }
    let losses_spoilt = (1, spoilt);
    assert_close(
        untouched(&losses, losses_spoilt),
        untouched(&losses_exact, losses_spoilt),
        5e-5,
        "loss",
    );
    if wanted {
        assert_written(&grads, "the loss' gradient");
        let found = untouched(&grads, (width, spoilt));
        let expected = untouched(&grads_exact, (width, spoilt));
        assert_close(found, expected, 5e-5, "the loss' gradient");
    }
}

fn attention(input: &mut Input<'_>, work: usize) {
    let kv_heads = input.up_to(3);
    let heads = kv_heads * input.up_to(3);
    let head_dim = input.size(&[64, 80], 96);
    let most = (work / (heads * head_dim)).isqrt();
    let time = input.size(&[63, 64, 127, 129], most.clamp(5, 140));
    let most = (2 * work / (heads * head_dim * time * time)).max(1);
    let examples = input.up_to(most.min(3));
    let packed = heads == kv_heads && input.flag();
    let window = match input.byte() % 4 {
        0 => Some(input.size(&[], 200)),
        _ => None,
    };
    let shape = Causal {
        examples,
        time,
        heads,
        kv_heads,
        head_dim,
        scale: 1.0 / (head_dim as f32).sqrt(),
        window,
    };
    let (width, kv_width) = (heads * head_dim, kv_heads * head_dim);
    let tokens = examples * time;
    // Side by side in one tensor, or each in its own.
    let strides = match packed {
        true => [3 * width; 3],
        false => [width, kv_width, kv_width],
    };
    let offsets = match packed {
        true => [0, width, 2 * width],
        false => [0; 3],
    };
    let tensors = if packed { 1 } else { 3 };
    let mut values: Vec<Vec<f32>> = strides[..tensors]
        .iter()
        .map(|stride| input.values(tokens * stride))
        .collect();
    let mut spoilt = false;
    for (values, stride) in values.iter_mut().zip(strides) {
        spoilt |= input.spoil(values, time * stride);
    }
    let sources: [Heads<'_>; 3] = std::array::from_fn(|index| Heads {
        values: &values[index % tensors],
        offset: offsets[index],
        stride: strides[index],
    });
    let mut out = unwritten(tokens * width);
    let mut logs = unwritten(examples * heads * time);
    let [query, key, value] = sources;
    shape.forward(
        query,
        key,
        value,
        Shared::new(&mut out),
        Shared::new(&mut logs),
    );
    assert_written(&out, "attention");
    assert_written(&logs, "logarithms");
    let grad = input.values(tokens * width);
    let mut grads: Vec<Vec<f32>> = values
        .iter()
        .map(|values| unwritten(values.len()))
        .collect();
    let shared: Vec<Shared> = grads.iter_mut().map(|grads| Shared::new(grads)).collect();
    let targets = std::array::from_fn(|index| HeadsMut {
        values: shared[index % tensors],
        offset: offsets[index],
        stride: strides[index],
    });
    shape.backward(sources, &logs, &grad, targets);
    for grads in &grads {
        assert_written(grads, "attention's gradient");
    }
    let plain = plain_attention(shape, sources, &grad);
    let (first, width_spoilt) = (usize::from(spoilt), (time * width, spoilt));
    if first < examples {
        let expected = untouched(&plain[0], width_spoilt);
        assert_close(untouched(&out, width_spoilt), expected, 5e-5, "attention");
    }
    for (index, expected) in plain[1..].iter().enumerate() {
        let own = if index == 0 { width } else { kv_width };
        let grads = &grads[index % tensors];
        let found: Vec<f32> = (0..tokens)
            .flat_map(|token| &grads[token * strides[index] + offsets[index]..][..own])
            .copied()
            .collect();
        let range = (time * own, spoilt);
        let expected = untouched(expected, range);
        assert_close(
            untouched(&found, range),
            expected,
            1e-4,
            "attention's gradient",
        );
    }
}

/// The result, and the gradients by queries, keys and values.
fn plain_attention(shape: Causal, sources: [Heads<'_>; 3], grad: &[f32]) -> [Vec<Exact>; 4] {
    let Causal {
        examples,
        time,
        heads,
        kv_heads,
        head_dim,
        ..
    } = shape;
    let scale = f64::from(shape.scale);
    let at = |which: usize, example: usize, head: usize, token: usize, index: usize| {
        let source = sources[which];
        let start = (example * time + token) * source.stride + source.offset;
        f64::from(source.values[start + head * head_dim + index])
    };
    let (width, kv_width) = (heads * head_dim, kv_heads * head_dim);
    let tokens = examples * time;
    let mut out = vec![Exact::default(); tokens * width];
    let mut query_grad = vec![Exact::default(); tokens * width];
    let mut key_grad = vec![Exact::default(); tokens * kv_width];
    let mut value_grad = vec![Exact::default(); tokens * kv_width];
    let term = |value: f64, size: f64| Exact {
        value,
        size: size.abs() + value.abs(),
    };
    for example in 0..examples {
        for head in 0..heads {
            let kv_head = head * kv_heads / heads;
            for query in 0..time {
                let first = shape
                    .window
                    .map_or(0, |window| (query + 1).saturating_sub(window));
                let dot = |key: usize| {
                    (0..head_dim)
                        .map(|i| at(0, example, head, query, i) * at(1, example, kv_head, key, i))
                        .sum::<f64>()
                };
                let scores: Vec<f64> = (first..=query).map(|key| dot(key) * scale).collect();
                let largest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let powers: Vec<f64> = scores.iter().map(|score| (score - largest).exp()).collect();
                let sum: f64 = powers.iter().sum();
                let row = (example * time + query) * width + head * head_dim;
                let grad = &grad[row..row + head_dim];
                // An error of a score counts for each of its terms.
                let loose = 1.0 + scale * head_dim as f64;
                let by_weight: Vec<f64> = (first..=query)
                    .map(|key| {
                        (0..head_dim)
                            .map(|i| f64::from(grad[i]) * at(2, example, kv_head, key, i))
                            .sum()
                    })
                    .collect();
                let mean: f64 = by_weight
                    .iter()
                    .zip(&powers)
                    .map(|(slope, power)| slope * power / sum)
                    .sum();
                for (index, key) in (first..=query).enumerate() {
                    let weight = powers[index] / sum;
                    let slope = weight * (by_weight[index] - mean) * scale;
                    let steep = weight * scale * head_dim as f64 * loose;
                    let kv_row = (example * time + key) * kv_width + kv_head * head_dim;
                    for i in 0..head_dim {
                        let (q, k) = (
                            at(0, example, head, query, i),
                            at(1, example, kv_head, key, i),
                        );
                        let v = at(2, example, kv_head, key, i);
                        let g = f64::from(grad[i]);
                        out[row + i].add(term(weight * v, weight * loose));
                        query_grad[row + i].add(term(slope * k, steep));
                        key_grad[kv_row + i].add(term(slope * q, steep));
                        value_grad[kv_row + i].add(term(weight * g, weight * loose));
                    }
                }
            }
        }
    }
    [out, query_grad, key_grad, value_grad]
}

fn layer(input: &mut Input<'_>, work: usize) {
    let inputs = input.size(&[1023, 1024, 1025, 1040], work);
    let outputs = input.size(&[96, 97, 128], work / inputs);
    let rank = input.up_to(20).min(1 + work / (inputs + outputs));
    let row = inputs * outputs + rank * (inputs + outputs);
    let time = input.size(&[111, 112, 113, 139, 140, 141], work / row);
    let examples = input.up_to((work / row / time).clamp(1, 9));
    let turned = input.flag();
    let (has_bias, has_residual) = (input.flag(), input.flag());
    let copies = if input.flag() { examples } else { 1 };
    let adapted = input.byte() % 4 != 0;
    let wanted: [bool; 3] = std::array::from_fn(|_| input.byte() % 4 != 0);
    let (rows, sizes) = (
        examples * time,
        Sizes {
            examples,
            time,
            inputs,
            outputs,
        },
    );
    // Rows that lie further apart than they are long.
    let gap = usize::from(input.byte() % 4);
    let (lines, length) = if turned {
        (outputs, inputs)
    } else {
        (inputs, outputs)
    };
    let stored = input.values((lines - 1) * (length + gap) + length);
    let weight = || {
        let view = View::rows(&stored, lines, length, length + gap);
        if turned { view.transposed() } else { view }
    };
    let weight_at = |k: usize, o: usize| {
        let (line, place) = if turned { (o, k) } else { (k, o) };
        Exact::of(stored[line * (length + gap) + place])
    };
    let mut x = input.values(rows * inputs);
    let mut spoilt = input.spoil(&mut x, time * inputs);
    let bias = input.values(outputs);
    let residual = input.values(rows * outputs);
    let (a, b) = (
        input.values(copies * inputs * rank),
        input.values(copies * rank * outputs),
    );
    let scaling = 0.7_f32;
    let factors = adapted.then_some(Factors {
        a: &a,
        b: &b,
        copies,
        rank,
        scaling,
    });
    let mut y = unwritten(rows * outputs);
    let mut low = unwritten(if adapted { rows * rank } else { 0 });
    linear::forward(
        sizes,
        &x,
        weight(),
        has_bias.then_some(&bias[..]),
        has_residual.then_some(&residual[..]),
        factors,
        (Shared::new(&mut y), &mut low),
    );
    assert_written(&y, "linear");
    assert_written(&low, "linear's low part");

    let mut grad = input.values(rows * outputs);
    let grad_spoilt = input.spoil(&mut grad, time * outputs);
    let mut x_grad = unwritten(rows * inputs);
    let mut a_grad = unwritten(a.len());
    let mut b_grad = unwritten(b.len());
    let x_wanted = wanted[0].then(|| Shared::new(&mut x_grad));
    linear::backward(
        sizes,
        &grad,
        weight(),
        factors.map(|factors| (factors, &x[..], &low[..])),
        x_wanted,
        FactorGradients {
            a: (adapted && wanted[1]).then_some(&mut a_grad[..]),
            b: (adapted && wanted[2]).then_some(&mut b_grad[..]),
        },
    );

    let (x, grad, a, b) = (exact(&x), exact(&grad), exact(&a), exact(&b));
    let of = |row: usize| if copies == 1 { 0 } else { row / time };
    let s = Exact::of(scaling);
    let times = |values: Vec<Exact>| -> Vec<Exact> {
        values.into_iter().map(|value| value.times(s)).collect()
    };
    // The products with an adapter's factors, example by example.
    let per_row = |inner: usize,
                   columns: usize,
                   left: &[Exact],
                   right: &dyn Fn(usize, usize, usize) -> Exact| {
        let mut out = Vec::new();
        for row in 0..rows {
            let copy = of(row);
            out.extend(product(
                [1, inner, columns],
                |_, k| left[row * inner + k],
                |k, column| right(copy, k, column),
            ));
        }
        out
    };
    let mut y_exact = product([rows, inputs, outputs], |r, k| x[r * inputs + k], weight_at);
    let mut x_exact = product(
        [rows, outputs, inputs],
        |r, o| grad[r * outputs + o],
        |o, k| weight_at(k, o),
    );
    for (index, y) in y_exact.iter_mut().enumerate() {
        if has_bias {
            y.add(Exact::of(bias[index % outputs]));
        }
        if has_residual {
            y.add(Exact::of(residual[index]));
        }
    }
    let mut gradients = Vec::new();
    if adapted {
        let low_exact = times(per_row(inputs, rank, &x, &|copy, k, r| {
            a[(copy * inputs + k) * rank + r]
        }));
        let up = per_row(rank, outputs, &low_exact, &|copy, r, o| {
            b[(copy * rank + r) * outputs + o]
        });
        y_exact.iter_mut().zip(up).for_each(|(y, up)| y.add(up));
        let back = times(per_row(outputs, rank, &grad, &|copy, o, r| {
            b[(copy * rank + r) * outputs + o]
        }));
        let down = per_row(rank, inputs, &back, &|copy, r, k| {
            a[(copy * inputs + k) * rank + r]
        });
        x_exact
            .iter_mut()
            .zip(down)
            .for_each(|(x, down)| x.add(down));
        let mut by_a = vec![Exact::default(); a.len()];
        let mut by_b = vec![Exact::default(); b.len()];
        for row in 0..rows {
            let copy = of(row);
            for r in 0..rank {
                for k in 0..inputs {
                    by_a[(copy * inputs + k) * rank + r]
                        .add(x[row * inputs + k].times(back[row * rank + r]));
                }
                for o in 0..outputs {
                    by_b[(copy * rank + r) * outputs + o]
                        .add(low_exact[row * rank + r].times(grad[row * outputs + o]));
                }
            }
        }
        gradients = vec![
            (wanted[1], a_grad, by_a, inputs * rank, "A's gradient"),
            (wanted[2], b_grad, by_b, rank * outputs, "B's gradient"),
        ];
    }
    let range = (time * outputs, spoilt);
    let expected = untouched(&y_exact, range);
    assert_close(untouched(&y, range), expected, 5e-5, "linear");
    spoilt |= grad_spoilt;
    if wanted[0] {
        assert_written(&x_grad, "linear's gradient");
        let range = (time * inputs, spoilt);
        let expected = untouched(&x_exact, range);
        assert_close(
            untouched(&x_grad, range),
            expected,
            5e-5,
            "linear's gradient",
        );
    }
    for (wanted, found, expected, size, what) in gradients {
        if !wanted {
            continue;
        }
        assert_written(&found, what);
        // A factor that all share has every example's part in it.
        if !spoilt || copies > 1 {
            let range = (size, spoilt);
            let expected = untouched(&expected, range);
            assert_close(untouched(&found, range), expected, 1e-4, what);
        }
    }
}
