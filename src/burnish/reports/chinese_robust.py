"""The page of robustness in Chinese; English is the key. What the report says too is in `reports.chinese` alone."""

from __future__ import annotations

ROBUST = {
    "is it robust?": "稳健吗？",
    "Is it robust?": "稳健吗？",
    " to ": " 至 ",
    "Shares are accuracy, with 95 %% intervals.": "比例为准确率，附 95 %% 区间。",
    "Shares are mean average precision, with 95 %% intervals.": "比例为平均精度均值，附 95 %% 区间。",
    "Intervals are over the groups that the data names.": "区间按数据给出的分组计算。",
    "Differences are paired, in points, with the same images undamaged.": (
        "差值以百分点计，与未受损的同一批图像逐一配对。"
    ),
    "Corrupted: %(n)s of %(of)s images": "受损：%(of)s 张图像中的 %(n)s 张",
    "Fourteen corruptions of Hendrycks and Dietterich 2019 (arXiv:1903.12261) and four of cameras in use, in five severities.": (
        "Hendrycks 与 Dietterich 2019（arXiv:1903.12261）的十四种损坏，加上相机使用中的四种，各分五级。"
    ),
    "All of them on average: %(value)s %% (%(low)s to %(high)s), undamaged %(clean)s %%.": (
        "全部平均：%(value)s %%（%(low)s 至 %(high)s），未受损时 %(clean)s %%。"
    ),
    "The lowest: %(name)s at severity %(severity)s.": "最低：%(name)s，第 %(severity)s 级。",
    "The pictures are one of the images, with the figure of each severity, which is for 224 pixels and was scaled to the "
    "%(side)s of this model.": (
        "图片为其中一张图像，附各级的数值；数值按 224 像素给出，并已换算到本模型的 %(side)s 像素。"
    ),
    "undamaged": "未受损",
    "Corrupted images": "受损图像",
    "Corruption": "损坏",
    "severity %(n)s": "第 %(n)s 级",
    "mean": "平均",
    "points to undamaged": "与未受损相差（百分点）",
    "What the model says of it": "模型如何看待",
    "corrupted, on average": "受损，平均",
    "expected calibration error": "期望校准误差",
    "told to be unlike the training images": "被认为与训练图像不同",
    "answered with --reject %(wanted)s": "使用 --reject %(wanted)s 时作答",
    "right of those": "其中正确",
    "The files of the same images, handled otherwise": "同一批图像的文件，经过其他处理",
    "Saved again, passed on, shrunk, turned, cropped, framed: what happens to files before the network's square is cut from "
    "them, at the size of the file (of its long side 1,600 pixels at most). Above, the square itself is damaged. The pictures "
    "are what the network sees of the same image. Whether a turned or mirrored image still shows its class is for you to say.": (
        "重新保存、转发、缩小、旋转、裁剪、加边框：在截取网络所见的方形之前，文件以原有尺寸（长边最多 1,600 像素）经历的处理。"
        "上文受损的是方形本身。图片为网络在同一张图像上所见。旋转或镜像后的图像是否仍属于原类别，由您判断。"
    ),
    "Files handled otherwise": "经过其他处理的文件",
    "Handling": "处理",
    "figure and share": "数值与比例",
    "Attacked: %(n)s of %(of)s images": "受攻击：%(of)s 张图像中的 %(n)s 张",
    "Each value of each image is changed by at most epsilon of 255 so that the model errs, by one who knows its weights: in one "
    "step (FGSM, arXiv:1412.6572) and in %(steps)s steps from %(starts)s drawn starts (APGD, arXiv:2003.01690). Noise as large "
    "is the control.": (
        "由知道模型权重的人把每张图像的每个值最多改动 epsilon（满值 255），使模型出错：一步完成（FGSM，arXiv:1412.6572），"
        "或从 %(starts)s 个随机起点走 %(steps)s 步（APGD，arXiv:2003.01690）。同样大小的噪声作为对照。"
    ),
    "Undamaged %(value)s %% (%(low)s to %(high)s).": "未受损时 %(value)s %%（%(low)s 至 %(high)s）。",
    "noise": "噪声",
    "under all": "全部攻击之下",
    "* below 1 no file holds the image: it tells of the network.": "* 小于 1 时没有文件能保存这样的图像：它只说明网络。",
    "each value changed by at most %(n)s": "每个值最多改动 %(n)s",
    "what was added, made strong": "所加的改动（已放大）",
    "Careful:": "注意：",
    "%(n)s of the images are ones that the run learnt from; of those the shares say little about new ones.": (
        "其中 %(n)s 张是该次运行学习过的图像；对它们的比例几乎不能说明新图像的情况。"
    ),
    "%(n)s files could not be used.": "%(n)s 个文件无法使用。",
    "%(some)s of %(all)s images have no slope": "%(all)s 张图像中 %(some)s 张没有梯度",
    ", %(some)s of %(all)s withstand %(epsilon)s/255": "，%(all)s 张中 %(some)s 张经受住 %(epsilon)s/255",
    ", %(n)s fall to noise or one step and not to APGD": "，%(n)s 张败于噪声或一步攻击而未败于 APGD",
    ", %(some)s of %(all)s are answered otherwise when asked again (slopes are means of %(calls)s)": (
        "，%(all)s 张中 %(some)s 张再次询问时回答不同（梯度取 %(calls)s 次的平均）"
    ),
    "Controls of the attack passed: %(facts)s.": "攻击的对照检验通过：%(facts)s。",
    "Careful, gradients may be masked, and then these shares are too high: %(facts)s.": (
        "注意，梯度可能被掩盖，若如此则这些比例偏高：%(facts)s。"
    ),
    # What befalls squares, and what its figures are
    "gaussian noise": "高斯噪声",
    "deviation, of 1": "标准差（满值为 1）",
    "shot noise": "散粒噪声",
    "photons of white": "白色的光子数",
    "impulse noise": "脉冲噪声",
    "share of values black or white": "变黑或变白的值所占比例",
    "defocus blur": "失焦模糊",
    "radius, px of 224": "半径（224 像素中）",
    "glass blur": "玻璃模糊",
    "farthest way of a pixel, px of 224": "像素移动的最远距离（224 像素中）",
    "motion blur": "运动模糊",
    "deviation, px of 224": "标准差（224 像素中）",
    "zoom blur": "变焦模糊",
    "largest zoom": "最大放大倍数",
    "snow": "雪",
    "row of the paper's table": "论文表中的行",
    "fog": "雾",
    "brightness": "亮度",
    "added, of 1": "增加量（满值为 1）",
    "contrast": "对比度",
    "share left": "剩余比例",
    "elastic": "弹性形变",
    "way moved, of the side": "移动距离（占边长）",
    "pixelate": "像素化",
    "share of the side's pixels left": "边长上剩余的像素比例",
    "jpeg": "JPEG 压缩",
    "quality": "质量",
    "low light": "弱光",
    "stops of light lost": "损失的曝光档数",
    "colour cast": "偏色",
    "gain of red against blue": "红对蓝的增益",
    "rotation": "旋转",
    "degrees": "度",
    "occlusion": "遮挡",
    "share of the area": "占面积比例",
    # What happens to files, and what its figures are
    "saved again": "重新保存",
    "quality of the JPEG": "JPEG 质量",
    "passed on": "转发",
    "times shrunk to 0.9 and saved at quality 50": "缩小到 0.9 并以质量 50 保存的次数",
    "shrunk": "缩小",
    "short side, of what the network sees": "短边与网络所见尺寸之比",
    "turned": "转向",
    "degrees, as where EXIF is lost": "度，如 EXIF 丢失时",
    "mirrored": "镜像",
    "left and right, as selfies are": "左右互换，如自拍",
    "cropped": "裁剪",
    "share of each side left, at a drawn place": "各边剩余比例，位置随机",
    "framed": "加边框",
    "share of each side inside a margin": "边框内各边所占比例",
    "letterboxed": "屏幕留边",
    "height of an upright screen to its width": "竖屏的高宽比",
    "greyscale": "灰度",
    "greys that are left": "剩余灰度级数",
}
