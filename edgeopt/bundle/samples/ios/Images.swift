// Images as inputs of the model: decoded, fitted to its size and scaled as manifest.json says.

import CoreGraphics
import Foundation
import ImageIO

/// An image: a byte for each value, the channels of a pixel side by side.
struct Pixels {
    var data: [UInt8]
    let height: Int
    let width: Int
    let channels: Int

    init(data: [UInt8], height: Int, width: Int, channels: Int) {
        self.data = data
        self.height = height
        self.width = width
        self.channels = channels
    }

    init(height: Int, width: Int, channels: Int) {
        let data = [UInt8](repeating: 0, count: height * width * channels)
        self.init(data: data, height: height, width: width, channels: channels)
    }
}

/// Returns the pixels of an image file, upright; its colour profile does not count.
func decodeImage(_ file: Data, color: ImagePreprocessing.ColorOrder) throws -> Pixels {
    guard let source = CGImageSourceCreateWithData(file as CFData, nil),
          let image = CGImageSourceCreateImageAtIndex(source, 0, nil)
    else { throw SampleError("The file is not an image that iOS reads.") }
    let isGray = image.colorSpace?.model == .monochrome
    let space = isGray ? CGColorSpaceCreateDeviceGray() : CGColorSpaceCreateDeviceRGB()
    // As they are in the file: drawn in the same colour space, pixels are not converted from its profile.
    let plain = image.copy(colorSpace: space) ?? image
    let drawn = try draw(plain, in: space, isGray: isGray, background: 0)
    if hasAlpha(image), try draw(plain, in: space, isGray: isGray, background: 1) != drawn {
        throw SampleError("The image is transparent: its colours are not certain. Save it without that.")
    }
    let pixels = isGray
        ? fromGray(drawn, height: image.height, width: image.width, color: color)
        : fromRGBX(drawn, height: image.height, width: image.width, color: color)
    return turnUpright(pixels, orientation: orientationOf(propertiesOf(source)))
}

struct ImageSize {
    let height: Int
    let width: Int
}

/// Returns the size of the image in a file, upright, without decoding it.
func sizeOf(_ file: Data) throws -> ImageSize {
    guard let source = CGImageSourceCreateWithData(file as CFData, nil),
          let height = propertiesOf(source)[kCGImagePropertyPixelHeight] as? Int,
          let width = propertiesOf(source)[kCGImagePropertyPixelWidth] as? Int
    else { throw SampleError("The file is not an image that iOS reads.") }
    let isTurned = orientationOf(propertiesOf(source)) >= 5 // its rows become columns
    return isTurned ? ImageSize(height: width, width: height) : ImageSize(height: height, width: width)
}

private func propertiesOf(_ source: CGImageSource) -> [CFString: Any] {
    CGImageSourceCopyPropertiesAtIndex(source, 0, nil) as? [CFString: Any] ?? [:]
}

private func orientationOf(_ properties: [CFString: Any]) -> Int {
    properties[kCGImagePropertyOrientation] as? Int ?? 1
}

private func hasAlpha(_ image: CGImage) -> Bool {
    switch image.alphaInfo {
    case .none, .noneSkipFirst, .noneSkipLast: return false
    default: return true
    }
}

/// Returns an image over black (0) or white (1): a byte for a pixel if it is grey, or four, the last of them unused.
private func draw(_ image: CGImage, in space: CGColorSpace, isGray: Bool, background: CGFloat) throws -> [UInt8] {
    let rowSize = image.width * (isGray ? 1 : 4)
    let alpha: CGImageAlphaInfo = isGray ? .none : .noneSkipLast
    let whole = CGRect(x: 0, y: 0, width: image.width, height: image.height)
    var bytes = [UInt8](repeating: 0, count: rowSize * image.height)
    let isDrawn = bytes.withUnsafeMutableBytes { buffer -> Bool in
        guard let context = CGContext(
            data: buffer.baseAddress, width: image.width, height: image.height, bitsPerComponent: 8,
            bytesPerRow: rowSize, space: space, bitmapInfo: alpha.rawValue
        ) else { return false }
        context.setFillColor(gray: background, alpha: 1)
        context.fill(whole)
        context.draw(image, in: whole)
        return true
    }
    guard isDrawn else { throw SampleError("There is too little memory for this image: make it smaller first.") }
    return bytes
}

private func fromGray(_ bytes: [UInt8], height: Int, width: Int, color: ImagePreprocessing.ColorOrder) -> Pixels {
    let channels = color == .gray ? 1 : 3
    let data = channels == 1 ? bytes : bytes.flatMap { [$0, $0, $0] }
    return Pixels(data: data, height: height, width: width, channels: channels)
}

private func fromRGBX(_ bytes: [UInt8], height: Int, width: Int, color: ImagePreprocessing.ColorOrder) -> Pixels {
    let channels = color == .gray ? 1 : 3
    var image = Pixels(height: height, width: width, channels: channels)
    for pixel in 0..<height * width {
        let (red, green, blue) = (bytes[4 * pixel], bytes[4 * pixel + 1], bytes[4 * pixel + 2])
        if channels == 1 {
            let sum: Int = Int(red) * 19595 + Int(green) * 38470 + Int(blue) * 7471 // ITU-R 601
            image.data[pixel] = UInt8((sum + 0x8000) >> 16)
        } else {
            image.data[3 * pixel] = red
            image.data[3 * pixel + 1] = green
            image.data[3 * pixel + 2] = blue
        }
    }
    return image
}

/// Returns an image as its EXIF orientation, 1 to 8, says that it is held.
func turnUpright(_ image: Pixels, orientation: Int) -> Pixels {
    guard (2...8).contains(orientation) else { return image }
    let isTurned = orientation >= 5 // its rows become columns
    let fromBottom = [3, 4, 6, 7].contains(orientation)
    let fromRight = [2, 3, 7, 8].contains(orientation)
    let (height, width) = isTurned ? (image.width, image.height) : (image.height, image.width)
    var upright = Pixels(height: height, width: width, channels: image.channels)
    for y in 0..<height {
        for x in 0..<width {
            let (row, column) = isTurned ? (x, y) : (y, x)
            let oldY = fromBottom ? image.height - 1 - row : row
            let oldX = fromRight ? image.width - 1 - column : column
            copyPixel(from: image, oldY, oldX, to: &upright, y, x)
        }
    }
    return upright
}

private func copyPixel(from: Pixels, _ fromY: Int, _ fromX: Int, to: inout Pixels, _ toY: Int, _ toX: Int) {
    let source = (fromY * from.width + fromX) * from.channels
    let target = (toY * to.width + toX) * to.channels
    for channel in 0..<from.channels { to.data[target + channel] = from.data[source + channel] }
}

/// For a new pixel: the first old one that it replaces, and the weights of these.
private struct Weights {
    let first: Int
    let weights: [Double]
}

/// Returns the weights of each new pixel: a triangle, as in Pillow.
private func weightsOf(before: Int, after: Int) -> [Weights] {
    let step = Double(before) / Double(after)
    let support = max(1, step)
    return (0..<after).map { index -> Weights in
        let center = (Double(index) + 0.5) * step
        let first = max(0, Int((center - support).rounded(.down)))
        let last = min(before - 1, Int((center + support).rounded(.up)))
        let weights = (first...last).map { old -> Double in
            let distance = abs(Double(old) + 0.5 - center)
            return max(0, 1 - distance / support)
        }
        let sum = weights.reduce(0, +)
        return Weights(first: first, weights: weights.map { $0 / sum })
    }
}

/// Returns an image in another size: bilinear, over all pixels that one replaces.
func resizeImage(_ image: Pixels, height: Int, width: Int) -> Pixels {
    if image.height == height && image.width == width { return image }
    let channels = image.channels
    let columns = weightsOf(before: image.width, after: width)
    var wide = Pixels(height: image.height, width: width, channels: channels)
    for y in 0..<image.height {
        for x in 0..<width {
            for c in 0..<channels {
                let start = (y * image.width + columns[x].first) * channels + c
                let value = weighted(image.data, from: start, step: channels, by: columns[x].weights)
                wide.data[(y * width + x) * channels + c] = value
            }
        }
    }
    let rows = weightsOf(before: image.height, after: height)
    let rowSize = width * channels
    var whole = Pixels(height: height, width: width, channels: channels)
    for y in 0..<height {
        for x in 0..<rowSize {
            let start = rows[y].first * rowSize + x
            whole.data[y * rowSize + x] = weighted(wide.data, from: start, step: rowSize, by: rows[y].weights)
        }
    }
    return whole
}

private func weighted(_ data: [UInt8], from start: Int, step: Int, by weights: [Double]) -> UInt8 {
    var sum = 0.0
    for i in weights.indices { sum += weights[i] * Double(data[start + i * step]) }
    return UInt8(min(255, sum.rounded()))
}

/// Returns the part of an image from (top, left); pixels outside of it are black.
func cutImage(_ image: Pixels, top: Int, left: Int, height: Int, width: Int) -> Pixels {
    var part = Pixels(height: height, width: width, channels: image.channels)
    for y in 0..<height where (0..<image.height).contains(y + top) {
        for x in 0..<width where (0..<image.width).contains(x + left) {
            copyPixel(from: image, y + top, x + left, to: &part, y, x)
        }
    }
    return part
}

private func roundHalfEven(_ value: Double) -> Int { Int(value.rounded(.toNearestOrEven)) }

/// The size to which an image is resized, and where the model's input begins in it.
struct Fit {
    let height: Int
    let width: Int
    let top: Int
    let left: Int
}

/// Returns how an image of a size is fitted to the size that the model takes.
func fitOf(_ size: ImageSize, _ how: ImagePreprocessing) -> Fit {
    guard let height = how.height, let width = how.width else {
        return Fit(height: size.height, width: size.width, top: 0, left: 0)
    }
    switch how.resize {
    case .stretch:
        return Fit(height: height, width: width, top: 0, left: 0)
    case .pad:
        let ratio = min(Double(width) / Double(size.width), Double(height) / Double(size.height))
        let tall = max(1, roundHalfEven(Double(size.height) * ratio))
        let wide = max(1, roundHalfEven(Double(size.width) * ratio))
        return Fit(height: tall, width: wide, top: -((height - tall) / 2), left: -((width - wide) / 2))
    case .crop:
        return cropOf(size, height: height, width: width, ratio: how.cropRatio)
    }
}

private func cropOf(_ size: ImageSize, height: Int, width: Int, ratio: Double) -> Fit {
    let tall: Int
    let wide: Int
    if size.height * width >= size.width * height { // the shorter side decides
        wide = roundHalfEven(Double(width) / ratio)
        tall = wide * size.height / size.width
    } else {
        tall = roundHalfEven(Double(height) / ratio)
        wide = tall * size.width / size.height
    }
    let (top, left) = (roundHalfEven(Double(tall - height) / 2), roundHalfEven(Double(wide - width) / 2))
    return Fit(height: tall, width: wide, top: top, left: left)
}

/// Returns an image in the size that the model takes.
func resizeToFit(_ image: Pixels, _ how: ImagePreprocessing) -> Pixels {
    let fit = fitOf(ImageSize(height: image.height, width: image.width), how)
    let resized = resizeImage(image, height: fit.height, width: fit.width)
    let (height, width) = (how.height ?? fit.height, how.width ?? fit.width)
    return cutImage(resized, top: fit.top, left: fit.left, height: height, width: width)
}

/// Returns an image, in red, green and blue or grey, as a batch of one sample.
func prepareImage(_ image: Pixels, _ how: ImagePreprocessing, dtype: String) throws -> Values {
    let fitted = resizeToFit(image, how)
    let (height, width, channels) = (fitted.height, fitted.width, fitted.channels)
    let size = height * width
    var numbers = [Double](repeating: 0, count: size * channels)
    for pixel in 0..<size {
        for channel in 0..<channels {
            let byte = fitted.data[pixel * channels + (how.color == .bgr ? channels - 1 - channel : channel)]
            let place = how.layout == .nchw ? channel * size + pixel : pixel * channels + channel
            let mean = how.mean[channel % how.mean.count] // one number, or one for each channel
            let std = how.std[channel % how.std.count]
            let scaled = (Double(byte) / how.scale - mean) / std
            numbers[place] = how.dtype == .uint8 ? Double(byte) : scaled
        }
    }
    let shape = how.layout == .nchw ? [1, channels, height, width] : [1, height, width, channels]
    return try Values(dtype: dtype, shape: shape, numbers: numbers)
}
